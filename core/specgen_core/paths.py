"""Paths within the sandbox: which are clean, and which lie under which.

All of it takes time and memory linear in the paths' length, whatever they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .text import quoted
from .violations import NO_NUL

__all__ = ["lies_in", "nearest_above", "path_problems"]

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


_FEW = 4  # of so many roots each is tried: the sweep pays off with more


def nearest_above(paths: Sequence[str], roots: Sequence[str]) -> list[str | None]:
    """Return for each of ``paths`` the longest of ``roots`` at or above it, by components."""
    if len(roots) > _FEW:
        return _nearest_by_sweep(paths, roots)
    deepest_first = sorted(roots, key=len, reverse=True)
    return [next((root for root in deepest_first if lies_in(path, root)), None) for path in paths]


def _nearest_by_sweep(paths: Sequence[str], roots: Sequence[str]) -> list[str | None]:
    # With NUL for the slash a root comes right before all that is under it, so one
    # sweep over both lists finds every path's root: those open are a stack.
    sweep = [(root.replace("/", "\0") + "\0", -1, root) for root in roots]
    sweep += ((path.replace("/", "\0") + "\0", i, path) for i, path in enumerate(paths))
    sweep.sort()
    nearest: list[str | None] = [None] * len(paths)
    open_roots: list[tuple[str, str]] = []
    for key, i, path in sweep:
        while open_roots and not key.startswith(open_roots[-1][0]):
            open_roots.pop()
        if i < 0:
            open_roots.append((key, path))
        elif open_roots:
            nearest[i] = open_roots[-1][1]
    return nearest
