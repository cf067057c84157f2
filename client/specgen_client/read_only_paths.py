"""What a build can do to a read-only path of the host, in spite of its name.

``rbind,ro`` makes one mount read-only: neither the mounts below it, nor what is at the other end
of a socket or a device.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

from .host_rule import HostBuild, HostFindings, HostRules, listed
from .mount_table import mount_points

RULES = HostRules()

_LOOKED_AT = 20_000
"""Entries of all paths together: a store has millions."""


@RULES.add(
    "mounts-below-read-only-path",
    "{source} has other mounts below it: {found}; runc, and mostly crun, make only the uppermost",
    "one read-only, so a build may write to these",
    proven_by=("test_a_mount_below_a_read_only_path", "test_mounts_below"),
)
def _mounts_below(build: HostBuild) -> HostFindings:
    """A read-only path has other mounts below it that are not read-only."""
    mounted = [point.path for point in mount_points() if not point.read_only]
    for source in _sources(build):
        real = os.path.realpath(source)
        if below := [str(path) for path in mounted if real in map(str, path.parents)]:
            yield {"source": source, "found": listed(sorted(below))}


@RULES.add(
    "sockets-below-read-only-path",
    "{source} has unix sockets: {found}; a build can connect to them and ask what listens there",
    "for anything, read-only or not",
    proven_by=("test_what_is_below_a_read_only_path",),
)
def _sockets(build: HostBuild) -> HostFindings:
    """A read-only path is a unix socket, or has some below it."""
    for source, found in _special_files(build)[0].items():
        yield {"source": source, "found": listed(sorted(found))}


@RULES.add(
    "devices-below-read-only-path",
    "{source} has device nodes: {found}; a build can write to them where their mode and the",
    "runtime's device rules let it",
    proven_by=("test_what_is_below_a_read_only_path",),
)
def _devices(build: HostBuild) -> HostFindings:
    """A read-only path has device nodes below it."""
    for source, found in _special_files(build)[1].items():
        yield {"source": source, "found": listed(sorted(found))}


@RULES.add(
    "denied-device",
    '{source} is a device that the spec\'s rules deny: a build gets "Operation not permitted" on',
    "runc, and on crun where that makes a cgroup. Add --device {device}",
    proven_by=("test_a_device_outside_dev",),
)
def _denied_device(build: HostBuild) -> HostFindings:
    """A read-only path is a device outside /dev that the spec's rules deny, and root runs it."""
    # rules are by number, wherever the node lies; of those in /dev a diagnostic speaks already
    rules = build.spec.linux.resources.devices
    allowed = {(rule.type, rule.major, rule.minor) for rule in rules if rule.allow}
    if os.geteuid() != 0 or not rules:  # a user's builds have no device rules
        return
    for source in _sources(build):
        try:
            status = os.stat(source)  # noqa: PTH116
        except (OSError, ValueError):
            continue  # said already
        type_ = "c" if stat.S_ISCHR(status.st_mode) else "b" if stat.S_ISBLK(status.st_mode) else ""
        number = os.major(status.st_rdev), os.minor(status.st_rdev)
        of_every_container = type_ == "c" and number in _OF_EVERY_CONTAINER
        is_known = of_every_container or (type_, *number) in allowed
        if type_ and not is_known and not source.startswith("/dev/"):
            yield {"source": source, "device": f"{source}:{type_}:{number[0]}:{number[1]}:rw"}


# runc, libcontainer/specconv, AllowedDevices: null, zero, full, random, urandom, tty, console, ptmx
_OF_EVERY_CONTAINER = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)}


@lru_cache(maxsize=1)  # for both checks of a build
def _special_files(build: HostBuild) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the sockets, and the devices, of each path that has some."""
    sockets: dict[str, list[str]] = {}
    devices: dict[str, list[str]] = {}
    entries = ((source, *entry) for source in _sources(build) for entry in _entries(source))
    for source, path, mode in islice(entries, _LOOKED_AT):
        if stat.S_ISSOCK(mode):
            sockets.setdefault(source, []).append(path)
        elif (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) and path != source:  # not asked for by name
            devices.setdefault(source, []).append(path)
    return sockets, devices


def _sources(build: HostBuild) -> list[str]:
    return list(dict.fromkeys(build.request.constraints.available_ro_paths))


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
