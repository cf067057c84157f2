"""Paths within the sandbox: which are clean, and which lie under which.

All of it takes time and memory linear in the paths' length, whatever they are.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable

from .text import quoted
from .violations import NO_NUL

__all__ = ["PathTree", "lies_in", "nearest_above", "path_key", "path_problems"]

_DOT_SEGMENT = re.compile(r"(?:^|/)\.{1,2}(?:/|\Z)")


def path_problems(path: str, *, absolute: bool = False) -> list[str]:
    """Return all that keeps a path from being a clean relative one, or a clean absolute one.

    Source: tvix, build/src/proto/mod.rs, ``is_clean_relative_path`` and
    ``is_clean_absolute_path``: no ``.`` or ``..``, no superfluous slash. Stricter: not empty,
    and no NUL byte.
    """
    if not path:
        return ["must not be empty"]
    problems = []
    if absolute and not path.startswith("/"):
        problems.append("must be absolute, with a leading slash")
    if not absolute and path.startswith("/"):
        problems.append("must be relative to the sandbox's root, without a leading slash")
    if "//" in path or (path.endswith("/") and not (absolute and path == "/")):
        problems.append("must not have a doubled or trailing slash")
    if _DOT_SEGMENT.search(path):
        problems.append('must not have "." or ".." as a segment')
    if "\0" in path:
        problems.append(NO_NUL)
    return [f"{problem}, is {quoted(path)}" for problem in problems]


def lies_in(path: str, directory: str) -> bool:
    """Whether a clean path is a directory, or lies below it."""
    return path == directory or path.startswith(f"{directory.rstrip('/')}/")


class PathTree:
    """Some clean paths, and which of them lie at or above another one."""

    def __init__(self, paths: Iterable[str]) -> None:
        by_key = {path_key(path): path for path in paths}
        self._keys = sorted(by_key)
        self._paths = [by_key[key] for key in self._keys]
        self._above: list[int] = []  # of each, where the next one above it stands; -1 for none
        for i, key in enumerate(self._keys):
            above = i - 1
            while above >= 0 and not key.startswith(self._keys[above]):
                above = self._above[above]
            self._above.append(above)

    @property
    def is_nested(self) -> bool:
        """Whether one of them lies in another."""
        return max(self._above, default=-1) >= 0

    def at_or_above(self, path: str) -> list[str]:
        """Return those at or above a path, by components, the longest first."""
        key, found = path_key(path), []
        i = bisect_right(self._keys, key) - 1
        while i >= 0 and not key.startswith(self._keys[i]):
            i = self._above[i]
        while i >= 0:
            found.append(self._paths[i])
            i = self._above[i]
        return found


def path_key(path: str) -> str:
    """Return what sorts a path right before all that lies in it, and begins what they have."""
    return path.rstrip("/").replace("/", "\0") + "\0"


def nearest_above(paths: Iterable[str], roots: Iterable[str]) -> list[str | None]:
    """Return for each of ``paths`` the longest of ``roots`` at or above it."""
    tree = PathTree(roots)
    return [next(iter(tree.at_or_above(path)), None) for path in paths]
