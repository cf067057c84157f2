"""Id mappings for the user that runs this, from the host's /etc/subuid and /etc/subgid.

They describe this host: right where the runtime runs here too, as with a sidecar, and
wrong for a server that answers coordinators of other hosts.

No user of a sandbox is root of the host, or a person of it. The one exception is a runtime without
privileges: it has no other id than its user's own to enter that user's directories with.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from specgen_core import BUILD_GID, BUILD_UID, IdMapping

__all__ = [
    "NoSubordinateIds",
    "Persons",
    "all_own_ids",
    "host_id_mappings",
    "ids_not_to_be_mapped",
]

_NOBODY = 65534
_SUBUID = Path("/etc/subuid")
_SUBGID = Path("/etc/subgid")
_UID_MAP = Path("/proc/self/uid_map")
_GID_MAP = Path("/proc/self/gid_map")
_LOGIN_DEFS = Path("/etc/login.defs")

_COUNT = 65_536
"""Ids in a range, as useradd(8) gives them: SUB_UID_COUNT of login.defs(5)."""
_GIVEN_TO_USERS = range(100_000, 600_100_001)
"""SUB_UID_MIN to SUB_UID_MAX of login.defs(5), as it comes."""
_IN_SMALL_NAMESPACES = range(60_001, 61_184)
"""Above UID_MAX of login.defs(5), below systemd's DynamicUser: containers may have no others."""
_GIVEN_TO_NOBODY = range(0x7F00_0000, 0x7FFE_0000)
"""Above what useradd(8), systemd-nspawn(1), FreeIPA and SSSD give to anyone, and below the ids
of systemd's own (2147352576 on) and those that are negative in 32 bits. Sources: login.defs(5);
systemd, docs/UIDS-GIDS.md; sssd-ldap(5), ldap_idmap_range_max."""


class NoSubordinateIds(LookupError):
    """The user has no subordinate ids, so a rootless build's user cannot be mapped."""


class Persons(NamedTuple):
    """Whose ids no sandbox of root's may have, besides root's own."""

    has_uid: Callable[[int], bool]
    has_gid: Callable[[int], bool]
    """Whether it is a group of a person's."""


def _is_a_persons(look_up: Callable[[int], object], least: str) -> Callable[[int], bool]:
    def is_a_persons(id_: int) -> bool:
        if id_ < _first_of_persons(least) or id_ == _NOBODY:
            return False  # of a service, which comes with the system
        try:
            look_up(id_)
        except KeyError:
            return False
        return True

    return is_a_persons


def _first_of_persons(least: str) -> int:
    """Return UID_MIN or GID_MIN of login.defs(5); 1000, where that is unset or above it."""
    try:
        lines = _LOGIN_DEFS.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    words = [line.split() for line in lines]
    given = [int(w[1]) for w in words if len(w) > 1 and w[0] == least and w[1].isdecimal()]
    return min(1000, *given[-1:]) if given else 1000


def _of_host() -> Persons:
    return Persons(_is_a_persons(pwd.getpwuid, "UID_MIN"), _is_a_persons(grp.getgrgid, "GID_MIN"))


def host_id_mappings(
    subuid: Path = _SUBUID, subgid: Path = _SUBGID, *, persons: Persons | None = None
) -> tuple[tuple[IdMapping, ...], tuple[IdMapping, ...]]:
    """Return uid and gid mappings for the effective user.

    The user's first subordinate id is the build's user. For root the next one is root in the
    sandbox, and one more nobody; without an entry that suffices root takes ids from a range
    that nobody has, the same each time. Anybody else is root in the sandbox as itself.

    Args:
        subuid: who has which subordinate uids.
        subgid: the same for gids.
        persons: who is one; without it, accounts and groups of this host, from UID_MIN and
            GID_MIN of login.defs(5) on.

    Raises:
        NoSubordinateIds: there are none to take.
        OSError: a file is there and cannot be read.
    """
    uids, gids = _ids(subuid, subgid, persons)
    return uids.mappings(BUILD_UID), gids.mappings(BUILD_GID)


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

    def mappings(ids: _Ids) -> tuple[IdMapping, ...]:
        own = ids.own_without_the_runner()
        return IdMapping(0, ids.runner, 1), IdMapping(1, own.start, len(own))

    uids, gids = _ids(subuid, subgid)
    return mappings(uids), mappings(gids)


def ids_not_to_be_mapped(
    uids: Iterable[range], gids: Iterable[range], subuid: Path = _SUBUID, subgid: Path = _SUBGID
) -> tuple[list[range], list[range]]:
    """Return which of these uids and gids of the host the effective user may not map.

    Raises:
        OSError: a file is there and cannot be read.
    """
    own_uids, own_gids = _ids(subuid, subgid)
    return _without(uids, own_uids.to_map()), _without(gids, own_gids.to_map())


def _ids(subuid: Path, subgid: Path, persons: Persons | None = None) -> tuple[_Ids, _Ids]:
    persons = persons or _of_host()
    return (
        _Ids(subuid, _UID_MAP, os.geteuid(), persons.has_uid),
        _Ids(subgid, _GID_MAP, os.getegid(), persons.has_gid),
    )


@dataclass(frozen=True)
class _Ids:
    """User ids, or group ids, of this host."""

    file: Path
    """Who has which subordinate ones: see subuid(5), subgid(5)."""
    map: Path
    """Which of them there are in this user namespace: see user_namespaces(7)."""
    runner: int
    """The effective user's."""
    is_a_persons: Callable[[int], bool]

    def mappings(self, build: int) -> tuple[IdMapping, ...]:
        """Return the mappings of root, the build's user and nobody."""
        if os.geteuid() == 0:
            build_id, root, *nobody = self._for_root()
        else:
            root = self.runner
            build_id, *nobody = islice(self.own_without_the_runner(), 2)
        mapped = [IdMapping(0, root, 1), IdMapping(build, build_id, 1)]
        return *mapped, *(IdMapping(_NOBODY, id_, 1) for id_ in nobody)

    def to_map(self) -> list[range]:
        """Return all ids that the user may map: user_namespaces(7), newuidmap(1)."""
        if os.geteuid() == 0:
            return self._there()
        own = range(self.runner, self.runner + 1)
        return [own, *_within(self._entries(lambda owner: owner in _names()), self._there())]

    def own_without_the_runner(self) -> range:
        """Return the ids of the user's first entry, but for the runner's own.

        Raises:
            NoSubordinateIds: there are none.
        """
        own = next(self._entries(lambda owner: owner in _names()), range(0))
        if self.runner in own:
            own = next(filter(None, _without([own], [range(self.runner, self.runner + 1)])), own)
        if not own:
            raise self._missing(f"no subordinate ids for {_user_name()} in {self.file}")
        if not _within([own], self._there()):
            raise self._missing(
                f"the subordinate ids of {_user_name()} in {self.file} are not among the ids of"
                f" this user namespace, see {self.map}"
            )
        return own

    def _for_root(self) -> tuple[int, ...]:
        """Return two or three ids that are subordinate to root, or to nobody."""
        others = list(self._entries(lambda owner: owner not in _names()))
        own = _without(self._entries(lambda owner: owner in _names()), others)
        there = self._there()
        found = self._of_no_person(_within(own, there))
        if len(found) > 1:
            return found
        starts = range(_GIVEN_TO_NOBODY.start, _GIVEN_TO_NOBODY.stop, _COUNT)
        for free in (range(start, start + _COUNT) for start in starts):
            if _without([free], others) == [free] == _within([free], there):
                found = self._of_no_person([free])
                if len(found) > 1:
                    return found
        raise self._missing(f"no subordinate ids for root in {self.file}, and none that are free")

    def _of_no_person(self, ranges: Iterable[range]) -> tuple[int, ...]:
        ids = (id_ for id_ in chain.from_iterable(ranges) if id_ and not self.is_a_persons(id_))
        return tuple(islice(ids, 3))

    def _missing(self, problem: str) -> NoSubordinateIds:
        taken = self._entries(lambda _: True)
        for free in _within(
            _without([_GIVEN_TO_USERS, _IN_SMALL_NAMESPACES], taken), self._there()
        ):
            if len(free) > 1:
                line = f"{_user_name()}:{free.start}:{len(free[:_COUNT])}"
                return NoSubordinateIds(
                    f"{problem}: add a line such as {line} (see usermod(8), --add-subuids and"
                    " --add-subgids)"
                )
        return NoSubordinateIds(f"{problem}; this user namespace has too few ids, see {self.map}")

    def _entries(self, of: Callable[[str], bool]) -> Iterator[range]:
        """Yield the ids of entries with a positive count, by their owners.

        Both files are keyed by the user's name or uid, /etc/subgid too.
        """
        try:
            lines = self.file.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            owner, _, numbers = line.strip().partition(":")
            start, _, count = numbers.partition(":")
            if start.isdecimal() and count.isdecimal() and int(count) > 0 and of(owner):
                yield range(int(start), int(start) + int(count))

    def _there(self) -> list[range]:
        lines = (line.split() for line in self.map.read_text().splitlines())
        return [range(int(first), int(first) + int(count)) for first, _, count in lines]


def _without(ranges: Iterable[range], taken: Iterable[range]) -> list[range]:
    """Return what is in the ranges and in none of those taken."""
    left = list(ranges)
    for t in taken:
        parts = (
            (range(r.start, min(r.stop, t.start)), range(max(r.start, t.stop), r.stop))
            for r in left
        )
        left = [part for pair in parts for part in pair if part]
    return left


def _within(ranges: Iterable[range], allowed: Iterable[range]) -> list[range]:
    """Return what is both in one of the ranges and in one of those allowed."""
    allowed = list(allowed)
    pairs = ((range(max(r.start, a.start), min(r.stop, a.stop))) for r in ranges for a in allowed)
    return [pair for pair in pairs if pair]


def _names() -> tuple[str, str]:
    return _user_name(), str(os.geteuid())


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())  # a uid without a name, as in many containers
