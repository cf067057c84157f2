"""Id mappings for the user that runs this, from the host's /etc/subuid and /etc/subgid.

They describe this host: right where the runtime runs here too, as with a sidecar, and
wrong for a server that answers coordinators of other hosts.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from specgen_core import BUILD_GID, BUILD_UID, IdMapping

__all__ = ["NoSubordinateIds", "all_own_ids", "host_id_mappings"]

_NOBODY = 65534
_SUBUID = Path("/etc/subuid")
_SUBGID = Path("/etc/subgid")


class NoSubordinateIds(LookupError):
    """The user has no subordinate ids, so a rootless build's user cannot be mapped."""


def host_id_mappings(
    subuid: Path = _SUBUID, subgid: Path = _SUBGID
) -> tuple[tuple[IdMapping, ...], tuple[IdMapping, ...]]:
    """Return uid and gid mappings for the effective user.

    The user itself is root in the sandbox, its first subordinate id is the build's user,
    the next one nobody. Root without an entry needs none: there the ids stay what they are.

    Raises:
        NoSubordinateIds: an unprivileged user has no entry with a positive count.
        OSError: a file is there and cannot be read.
    """
    return (
        _mappings(subuid, os.geteuid(), BUILD_UID),
        _mappings(subgid, os.getegid(), BUILD_GID),
    )


def all_own_ids(
    subuid: Path = _SUBUID, subgid: Path = _SUBGID
) -> tuple[tuple[IdMapping, ...], tuple[IdMapping, ...]]:
    """Return uid and gid mappings that hold all ids the effective user may use.

    The user itself is 0, its subordinate ids are those from 1 on. In such a namespace what
    a build left behind can be removed, whoever it belongs to.

    Raises:
        NoSubordinateIds: the user has no entry with a positive count.
        OSError: a file is there and cannot be read.
    """

    def mappings(file: Path, runner: int) -> tuple[IdMapping, ...]:
        ids = _subordinate_ids(file, runner)
        if not ids:
            raise _no_subordinate_ids(file)
        return IdMapping(0, runner, 1), IdMapping(1, ids.start, len(ids))

    return mappings(subuid, os.geteuid()), mappings(subgid, os.getegid())


def _mappings(file: Path, runner: int, build_id: int) -> tuple[IdMapping, ...]:
    ids = _subordinate_ids(file, runner)
    if not ids:
        if os.geteuid() != 0:
            raise _no_subordinate_ids(file)
        return tuple(IdMapping(id_, id_, 1) for id_ in (0, build_id, _NOBODY))
    mappings = [IdMapping(0, runner, 1), IdMapping(build_id, ids[0], 1)]
    if len(ids) > 1:
        mappings.append(IdMapping(_NOBODY, ids[1], 1))
    return tuple(mappings)


def _no_subordinate_ids(file: Path) -> NoSubordinateIds:
    return NoSubordinateIds(
        f"no subordinate ids for {_user_name()} in {file}: add a line such as "
        f"{_user_name()}:100000:65536 (see usermod(8), --add-subuids and --add-subgids)"
    )


def _subordinate_ids(file: Path, runner: int) -> range:
    """Return the ids of the first entry with a positive count; empty if there is none.

    The runner's own id is mapped already, so an entry that starts with it starts one later.
    Both files are keyed by the user's name or uid, /etc/subgid too: see subuid(5), subgid(5).
    """
    owners = (_user_name(), str(os.geteuid()))
    try:
        lines = file.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return range(0)
    for line in lines:
        owner, _, numbers = line.strip().partition(":")
        start, _, count = numbers.partition(":")
        if owner in owners and start.isdecimal() and count.isdecimal() and int(count) > 0:
            first, end = int(start), int(start) + int(count)
            if first <= runner < end:
                first, end = (runner + 1, end) if runner == first else (first, runner)
            return range(first, end)
    return range(0)


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())  # a uid without a name, as in many containers
