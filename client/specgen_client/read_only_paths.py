"""What a build can do to a read-only path of the host, in spite of its name.

``rbind,ro`` makes one mount read-only: neither the mounts below it, nor what is at the other end
of a socket or a device.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from itertools import islice

from .mount_table import mount_points

__all__ = ["read_only_path_problems"]

_NAMED = 5
_LOOKED_AT = 20_000
"""Entries of all paths together: a store has millions."""


def read_only_path_problems(sources: Iterable[str]) -> Iterator[str]:
    """Yield sentences about what is not read-only below directories and files of this host."""
    sources = list(dict.fromkeys(sources))
    mounted = [point.path for point in mount_points() if not point.read_only]
    for source in sources:
        real = os.path.realpath(source)
        below = [str(path) for path in mounted if real in map(str, path.parents)]
        if below:
            yield (
                f"{source} has other mounts below it: {_listed(below)}; runc, and mostly crun,"
                " make only the uppermost one read-only, so a build may write to these"
            )
    sockets: dict[str, list[str]] = {}
    devices: dict[str, list[str]] = {}
    entries = ((source, *entry) for source in sources for entry in _entries(source))
    for source, path, mode in islice(entries, _LOOKED_AT):
        if stat.S_ISSOCK(mode):
            sockets.setdefault(source, []).append(path)
        elif (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) and path != source:  # not asked for by name
            devices.setdefault(source, []).append(path)
    for source, found in sockets.items():
        yield (
            f"{source} has unix sockets: {_listed(found)}; a build can connect to them and ask what"
            " listens there for anything, read-only or not"
        )
    for source, found in devices.items():
        yield (
            f"{source} has device nodes: {_listed(found)}; a build can write to them where their"
            " mode and the runtime's device rules let it"
        )


def _entries(path: str) -> Iterator[tuple[str, int]]:
    """Yield a path and all below it, with their modes; links are not followed below it."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except (OSError, ValueError):
        return
    yield path, mode
    todo = [path] if stat.S_ISDIR(mode) else []
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    try:
                        mode = entry.stat(follow_symlinks=False).st_mode
                    except OSError:
                        continue
                    yield entry.path, mode
                    if stat.S_ISDIR(mode):
                        todo.append(entry.path)
        except OSError:
            continue  # the build's user may not look there either


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(sorted(paths)[:_NAMED]) + more
