"""Paths within the sandbox: which are clean, and which lie under which.

All of it takes time and memory linear in the paths' length, whatever they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .violations import quoted

__all__ = ["Roots", "all_clean", "nearest_above", "path_problems"]

_DOT_SEGMENT = re.compile(r"(?:^|/)\.{1,2}(?:/|\Z)")


def all_clean(paths: Sequence[str]) -> bool:
    """Whether none of these has ``path_problems``.

    Joined by slashes they have the segments of all of them, so one search tells.
    """
    return not paths or _is_clean("/".join(paths))


def _is_clean(path: str) -> bool:
    enclosed = f"/{path}/"
    return not ("//" in enclosed or "/./" in enclosed or "/../" in enclosed or "\0" in enclosed)


def path_problems(path: str, *, absolute: bool = False) -> list[str]:
    """Return all that keeps a path from being a clean relative one, or a clean absolute one.

    Source: tvix, build/src/proto/mod.rs, ``is_clean_relative_path`` and
    ``is_clean_absolute_path``: no ``.`` or ``..``, no superfluous slash. Stricter: not empty,
    and no NUL byte.
    """
    if absolute:
        if path == "/" or (path.startswith("/") and _is_clean(path[1:])):
            return []
    elif _is_clean(path):
        return []
    if not path:
        return ["must not be empty"]
    problems = []
    if absolute and not path.startswith("/"):
        problems.append("must be absolute, with a leading slash")
    if not absolute and path.startswith("/"):
        problems.append("must be relative to the sandbox's root, without a leading slash")
    if "//" in path or path.endswith("/"):
        problems.append("must not have a doubled or trailing slash")
    if _DOT_SEGMENT.search(path):
        problems.append('must not have "." or ".." as a segment')
    if "\0" in path:
        problems.append("must not contain a NUL byte")
    return [f"{problem}, is {quoted(path)}" for problem in problems]


_FEW = 4


class Roots:
    """Paths of which to ask what lies under them."""

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = roots
        self._deepest_first = [
            (root + "/", root) for root in sorted(roots, key=len, reverse=True)[: _FEW + 1]
        ]

    def nearest_above(self, paths: Sequence[str]) -> list[str | None]:
        """Return for each of ``paths`` the longest root at or above it, by components.

        Most builds have two scratch paths and one output. Then, trying each takes 0.4 us,
        and the sweep 3 us.
        """
        if len(self._roots) > _FEW:
            return _nearest_by_sweep(paths, self._roots)
        nearest: list[str | None] = []
        for path in paths:
            for prefix, root in self._deepest_first:
                if path.startswith(prefix) or path == root:
                    nearest.append(root)
                    break
            else:
                nearest.append(None)
        return nearest


def nearest_above(paths: Sequence[str], roots: Sequence[str]) -> list[str | None]:
    """Return for each of ``paths`` the longest of ``roots`` at or above it, by components."""
    return Roots(roots).nearest_above(paths)


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
