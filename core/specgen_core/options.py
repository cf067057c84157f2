"""What a spec depends on besides the request, and how a call overrides the server."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from .violations import Violations

__all__ = ["IdMapping", "SpecOptions"]


class IdMapping(msgspec.Struct, frozen=True):
    """``size`` ids from ``container_id`` on are the host's from ``host_id`` on."""

    container_id: int
    host_id: int
    size: int

    def covers(self, container_id: int) -> bool:
        """Whether the sandbox's ``container_id`` is one of these."""
        return self.container_id <= container_id < self.container_id + self.size


class SpecOptions(msgspec.Struct, frozen=True, kw_only=True, cache_hash=True):
    """The defaults are the seed's, as its caller passes them.

    Raises:
        InvalidRequest: for values that cannot be, with fields such as
            ``options.uid_mappings[1].size``.
    """

    rootless: bool = True
    sandbox_shell: str = "/bin/sh"
    terminal: bool = True
    cgroup_namespace: bool = True
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()

    def __post_init__(self) -> None:
        violations = Violations()
        if not self.sandbox_shell or "\0" in self.sandbox_shell:
            violations.add(
                "options.sandbox_shell", "must be a path on the host, not empty, without a NUL byte"
            )
        elif not _is_utf8(self.sandbox_shell):
            violations.add("options.sandbox_shell", "must be UTF-8")
        elif len(self.sandbox_shell.encode()) > _PATH_BYTES:
            violations.add(
                "options.sandbox_shell", f"must be at most {_PATH_BYTES} bytes long, as paths are"
            )
        for field, mappings in (
            ("options.uid_mappings", self.uid_mappings),
            ("options.gid_mappings", self.gid_mappings),
        ):
            if mappings and not self.rootless:
                violations.add(
                    field,
                    "must be empty for a rootful spec, which has no user namespace: "
                    "leave them out, or set rootless",
                )
            _check_mappings(field, mappings, violations)
        violations.raise_if_any()

    def override(
        self,
        *,
        rootless: bool | None = None,
        sandbox_shell: str | None = None,
        terminal: bool | None = None,
        cgroup_namespace: bool | None = None,
        uid_mappings: Sequence[IdMapping] = (),
        gid_mappings: Sequence[IdMapping] = (),
    ) -> SpecOptions:
        """Return these options with those given, and not None or empty, put in their place.

        Mappings of ours stay behind where a rootful spec is asked for.
        """
        rootless = self.rootless if rootless is None else rootless
        return SpecOptions(
            rootless=rootless,
            sandbox_shell=self.sandbox_shell if sandbox_shell is None else sandbox_shell,
            terminal=self.terminal if terminal is None else terminal,
            cgroup_namespace=(
                self.cgroup_namespace if cgroup_namespace is None else cgroup_namespace
            ),
            uid_mappings=tuple(uid_mappings) or (self.uid_mappings if rootless else ()),
            gid_mappings=tuple(gid_mappings) or (self.gid_mappings if rootless else ()),
        )


def _is_utf8(text: str) -> bool:
    """Whether this is real text: arguments of a command that are not, hold surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_PATH_BYTES = 4095  # PATH_MAX, less the NUL byte at the end
_IDS = 2**32 - 1  # the last one, (uid_t)-1, means "no id" to the kernel
_MAPPING_LINES = 340  # user_namespaces(7)


def _check_mappings(field: str, mappings: tuple[IdMapping, ...], violations: Violations) -> None:
    """Mappings MUST have a size, stay within 32 bits, and overlap on neither side.

    Source: user_namespaces(7), "Defining user and group ID mappings".
    """
    if len(mappings) > _MAPPING_LINES:
        violations.add(field, f"must be at most {_MAPPING_LINES}, the kernel takes no more")
    for i, mapping in enumerate(mappings):
        if mapping.size < 1:
            violations.add(f"{field}[{i}].size", "must be at least 1")
        for side in ("container_id", "host_id"):
            first = getattr(mapping, side)
            if first < 0 or first + mapping.size > _IDS:
                violations.add(f"{field}[{i}].{side}", f"must stay below {_IDS}, with its size")
    for side in ("container_id", "host_id"):
        by_start = sorted((getattr(m, side), m.size, i) for i, m in enumerate(mappings))
        for (start, size, one), (next_start, _, other) in pairwise(by_start):
            if start + size > next_start:
                violations.add(
                    f"{field}[{max(one, other)}].{side}",
                    f"must not overlap with {field}[{min(one, other)}]",
                )
