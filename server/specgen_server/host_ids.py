"""Id mappings for the user that runs this, from the host's /etc/subuid and /etc/subgid.

They describe this host: right where the runtime runs here too, as with a sidecar, and
wrong for a server that answers coordinators of other hosts.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from .spec import BUILD_GID, BUILD_UID, IdMapping

__all__ = ["NoSubordinateIds", "host_id_mappings"]

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


def _mappings(file: Path, runner: int, build_id: int) -> tuple[IdMapping, ...]:
    first, count = _subordinate_range(file)
    if count == 0:
        if os.geteuid() != 0:
            raise NoSubordinateIds(
                f"no subordinate ids for {_user_name()} in {file}: add a line such as "
                f"{_user_name()}:100000:65536 (see usermod(8), --add-subuids and --add-subgids)"
            )
        return tuple(IdMapping(id_, id_, 1) for id_ in (0, build_id, _NOBODY))
    mappings = [IdMapping(0, runner, 1), IdMapping(build_id, first, 1)]
    if count > 1:
        mappings.append(IdMapping(_NOBODY, first + 1, 1))
    return tuple(mappings)


def _subordinate_range(file: Path) -> tuple[int, int]:
    """Return start and count of the first usable entry, or a count of 0.

    Both files are keyed by the user's name or uid, /etc/subgid too: see subuid(5), subgid(5).
    """
    owners = (_user_name(), str(os.geteuid()))
    try:
        lines = file.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return 0, 0
    for line in lines:
        owner, _, numbers = line.strip().partition(":")
        start, _, count = numbers.partition(":")
        if owner in owners and start.isdecimal() and count.isdecimal() and int(count) > 0:
            return int(start), int(count)
    return 0, 0


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())  # a uid without a name, as in many containers
