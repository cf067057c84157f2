"""What a spec depends on besides the request, and how a call overrides the server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TypedDict, Unpack, get_args

import msgspec

from .profiles import (
    KNOWN_DEVICES,
    PROFILE_NAMES,
    PROFILES,
    DeviceRules,
    Nofile,
    Personality,
    ProfileName,
    Seccomp,
    device_of,
)
from .text import quoted
from .violations import NO_NUL, Violations

__all__ = [
    "MOST_DEVICES",
    "MOST_MAPPINGS",
    "GivenOptions",
    "IdMapping",
    "Resources",
    "SpecOptions",
]


class IdMapping(msgspec.Struct, frozen=True):
    """Maps ``size`` ids, from ``container_id`` in the sandbox to ``host_id`` on the host."""

    container_id: int
    host_id: int
    size: int

    def covers(self, container_id: int) -> bool:
        """Whether the sandbox's ``container_id`` is one of these."""
        return self.container_id <= container_id < self.container_id + self.size


class Resources(msgspec.Struct, frozen=True):
    """Limits of the build's cgroup; 0 is none."""

    memory_bytes: int = 0
    cpu_quota_us: int = 0
    """Microseconds of CPU time in each period."""
    cpu_period_us: int = 0
    pids: int = 0

    def over(self, others: Resources) -> Resources:
        """Return these limits, and where there is none, the others'; quota and period are one."""
        cpu = self if self.cpu_quota_us or self.cpu_period_us else others
        memory, pids = self.memory_bytes or others.memory_bytes, self.pids or others.pids
        return Resources(memory, cpu.cpu_quota_us, cpu.cpu_period_us, pids)


class GivenOptions(TypedDict, total=False):
    """Options that somebody gives; None, or an empty list, is not given."""

    profile: ProfileName | None
    rootless: bool | None
    sandbox_shell: str | None
    terminal: bool | None
    cgroup_namespace: bool | None
    uid_mappings: Sequence[IdMapping]
    gid_mappings: Sequence[IdMapping]
    nofile: Nofile | None
    drop_capabilities: bool | None
    tmp_mode: str | None
    devices: Sequence[str]
    device_rules: DeviceRules | None
    resources: Resources | None
    cgroups_path: str | None
    seccomp: Seccomp | None
    personality: Personality | None
    skeleton: bool | None


class SpecOptions(msgspec.Struct, frozen=True, kw_only=True, cache_hash=True):
    """The defaults are the seed's, as its caller passes them.

    Raises:
        InvalidRequest: for values that cannot be, with fields such as
            ``options.uid_mappings[1].size``.
    """

    rootless: bool = True
    sandbox_shell: str = "/bin/sh"
    terminal: bool = True
    cgroup_namespace: bool = PROFILES["seed"].cgroup_namespace
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    nofile: Nofile = PROFILES["seed"].nofile
    drop_capabilities: bool = PROFILES["seed"].drop_capabilities
    """Whether the build's five sets of capabilities are empty."""
    tmp_mode: str = PROFILES["seed"].tmp_mode
    """Octal digits."""
    devices: tuple[str, ...] = PROFILES["seed"].devices
    """Device nodes that the build may use, where they are among its read-only paths."""
    device_rules: DeviceRules = PROFILES["seed"].device_rules
    """``deny`` all other devices, or ``none``: no rules at all."""
    resources: Resources = Resources()
    cgroups_path: str = ""
    """linux.cgroupsPath; empty is the runtime's choice."""
    seccomp: Seccomp = PROFILES["seed"].seccomp
    personality: Personality = PROFILES["seed"].personality
    """``system``: a 32-bit one for the systems that are."""
    skeleton: bool = False
    """Whether the answer has what root/ must hold."""

    def __post_init__(self) -> None:
        broken = Violations()
        if not self.sandbox_shell or "\0" in self.sandbox_shell:
            broken.add(
                "options.sandbox_shell", "must be a path on the host, not empty, without a NUL byte"
            )
        else:
            _check_text("options.sandbox_shell", self.sandbox_shell, broken)
        for field, mappings in (
            ("options.uid_mappings", self.uid_mappings),
            ("options.gid_mappings", self.gid_mappings),
        ):
            if mappings and not self.rootless:
                broken.add(
                    field,
                    "must be empty for a rootful spec, which has no user namespace: "
                    "leave them out, or set rootless",
                )
            _check_mappings(field, mappings, broken)
        _check_nofile(self.nofile, broken)
        if not _MODE(self.tmp_mode):
            broken.add(
                "options.tmp_mode",
                f"must be a mode in octal digits such as 1777, is {quoted(self.tmp_mode)}",
            )
        for field, value, choices in (
            ("options.device_rules", self.device_rules, get_args(DeviceRules)),
            ("options.seccomp", self.seccomp, get_args(Seccomp)),
            ("options.personality", self.personality, get_args(Personality)),
        ):
            _check_choice(field, value, choices, broken)
        _check_devices(self.devices, broken)
        _check_resources(self.resources, broken)
        _check_text("options.cgroups_path", self.cgroups_path, broken)
        if ".." in self.cgroups_path.split("/"):
            broken.add("options.cgroups_path", 'must not have ".." as a segment')
        broken.raise_if_any()

    def override(self, **given: Unpack[GivenOptions]) -> SpecOptions:
        """Return these options with those given in their place.

        A profile given is the default of all that profiles say; what is given besides wins.
        A limit of ours stays in force until another is given in its place. Mappings of ours stay
        behind where a rootful spec is asked for.
        """
        profile = given.pop("profile", None)
        own = msgspec.structs.asdict(self)
        if profile is not None:
            broken = Violations()
            _check_choice("options.profile", profile, PROFILE_NAMES, broken)
            broken.raise_if_any()
            own |= msgspec.structs.asdict(PROFILES[profile])
        if given.get("rootless") is False:
            own |= {"uid_mappings": (), "gid_mappings": ()}
        for field in ("uid_mappings", "gid_mappings", "devices"):
            own[field] = tuple(given.pop(field, ())) or own[field]  # type: ignore[misc]
        own["resources"] = (given.pop("resources", None) or Resources()).over(self.resources)
        own |= {field: value for field, value in given.items() if value is not None}
        return SpecOptions(**own)


# --- what each of them may be ---------------------------------------------------------


def _check_choice(field: str, value: str, choices: tuple[str, ...], broken: Violations) -> None:
    if value not in choices:
        broken.add(field, f"must be one of {', '.join(choices)}, is {quoted(value)}")


_PATH_BYTES = 4095  # PATH_MAX, less the NUL byte at the end


def _check_text(field: str, text: str, broken: Violations) -> None:
    """A path MUST NOT contain NUL, MUST be UTF-8, and not longer than Linux takes."""
    if "\0" in text:
        broken.add(field, NO_NUL)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:  # arguments of a command that are no text hold surrogates
        broken.add(field, "must be UTF-8")
    else:
        if size > _PATH_BYTES:
            broken.add(field, f"must be at most {_PATH_BYTES} bytes long, as paths are")


_IDS = 2**32 - 1  # the last one, (uid_t)-1, means "no id" to the kernel
MOST_MAPPINGS = 340  # user_namespaces(7)


def _check_mappings(field: str, mappings: tuple[IdMapping, ...], broken: Violations) -> None:
    """Mappings MUST have a size, stay within 32 bits, and MUST NOT overlap on either side.

    Source: user_namespaces(7), "Defining user and group ID mappings".
    """
    if len(mappings) > MOST_MAPPINGS:
        broken.add(field, f"must be at most {MOST_MAPPINGS}, the kernel takes no more")
        return
    for i, mapping in enumerate(mappings):
        if mapping.size < 1:
            broken.add(f"{field}[{i}].size", "must be at least 1")
        for side in ("container_id", "host_id"):
            first = getattr(mapping, side)
            if first < 0 or first + mapping.size > _IDS:
                broken.add(f"{field}[{i}].{side}", f"must stay below {_IDS}, with its size")
    for side in ("container_id", "host_id"):
        by_start = sorted((getattr(m, side), m.size, i) for i, m in enumerate(mappings))
        for (start, size, one), (next_start, _, other) in pairwise(by_start):
            if start + size > next_start:
                broken.add(
                    f"{field}[{max(one, other)}].{side}",
                    f"must not overlap with {field}[{min(one, other)}]",
                )


_MOST_FILES = 2**30  # fs.nr_open's own most, about
_MODE = re.compile(r"[01]?[0-7]{3}").fullmatch


def _check_nofile(nofile: Nofile, broken: Violations) -> None:
    """The soft limit MUST NOT be above the hard one; see setrlimit(2)."""
    if not 0 <= nofile.hard <= _MOST_FILES:
        broken.add("options.nofile.hard", f"must be 0 for none, or at most {_MOST_FILES}")
    elif not (1 if nofile.hard else 0) <= nofile.soft <= nofile.hard:
        broken.add(
            "options.nofile.soft",
            f"must be 1 to {nofile.hard}, the hard limit, is {nofile.soft}"
            if nofile.hard
            else f"must be 0 where the hard limit is, is {nofile.soft}",
        )


_LEAST_MEMORY = 4096  # a page
_CPU_US = (1000, 1_000_000)  # Linux, Documentation/scheduler/sched-bwc.rst
_MOST = 2**63 - 1


def _check_resources(resources: Resources, broken: Violations) -> None:
    """Limits MUST be ones that a cgroup takes, or 0 for none."""
    least, most_period = _CPU_US
    for field, value, lowest, highest in (
        ("memory_bytes", resources.memory_bytes, _LEAST_MEMORY, _MOST),
        ("cpu_quota_us", resources.cpu_quota_us, least, _MOST),
        ("cpu_period_us", resources.cpu_period_us, least, most_period),
        ("pids", resources.pids, 1, _MOST),
    ):
        if value and not lowest <= value <= highest:
            broken.add(
                f"options.resources.{field}",
                f"must be 0 for none, or {lowest} to {highest}, is {value}",
            )


def _check_devices(devices: tuple[str, ...], broken: Violations) -> None:
    """A device MUST have a known name, or be PATH:TYPE:MAJOR:MINOR:ACCESS."""
    if len(devices) > MOST_DEVICES:
        broken.add("options.devices", f"must be at most {MOST_DEVICES}")
        return
    for i, device in enumerate(devices):
        if device_of(device) is None:
            broken.add(
                f"options.devices[{i}]",
                f"must be one of {', '.join(KNOWN_DEVICES)}, or PATH:TYPE:MAJOR:MINOR:ACCESS such "
                f"as /dev/kvm:c:10:232:rw, is {quoted(device)}",
            )


MOST_DEVICES = 100
