"""The types of the OCI runtime spec that a build needs, and what oci-spec fills in.

Types: opencontainers/runtime-spec, config.md and config-linux.md, in the order in
which Rust's oci-spec writes them. Values: oci-spec 0.6.4, src/runtime, unless noted.
An optional key that is not set is absent from the JSON; ``omit_defaults`` sees to it.
"""

from __future__ import annotations

import msgspec

__all__ = [
    "DEFAULT_MOUNTS",
    "OCI_VERSION",
    "ROOTLESS_MOUNTS",
    "Capabilities",
    "Cpu",
    "DeviceCgroup",
    "IdMap",
    "Linux",
    "Memory",
    "Mount",
    "Namespace",
    "Personality",
    "Pids",
    "Process",
    "Resources",
    "Rlimit",
    "Root",
    "Seccomp",
    "Spec",
    "Syscall",
    "SyscallArg",
    "User",
    "decode",
    "encode",
]

OCI_VERSION = "1.0.2-dev"


class Root(msgspec.Struct, frozen=True):
    """The root file system."""

    path: str
    readonly: bool


class Mount(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A mount; a relative source is relative to the bundle."""

    destination: str
    type: str
    source: str
    options: tuple[str, ...] = ()


class User(msgspec.Struct, frozen=True):
    """Who the process is, within the sandbox."""

    uid: int
    gid: int


class Capabilities(msgspec.Struct, frozen=True):
    """The five sets of capabilities(7)."""

    bounding: tuple[str, ...]
    effective: tuple[str, ...]
    inheritable: tuple[str, ...]
    permitted: tuple[str, ...]
    ambient: tuple[str, ...]


class Rlimit(msgspec.Struct, frozen=True):
    """A resource limit, see setrlimit(2)."""

    type: str
    hard: int
    soft: int


class Process(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The command, and what it may do."""

    terminal: bool
    user: User
    args: list[str]
    env: list[str]
    cwd: str
    capabilities: Capabilities
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool


class IdMap(msgspec.Struct, frozen=True):
    """A line of a user namespace's uid_map or gid_map."""

    container_id: int = msgspec.field(name="containerID")
    host_id: int = msgspec.field(name="hostID")
    size: int


class DeviceCgroup(msgspec.Struct, frozen=True, omit_defaults=True):
    """A rule of the device cgroup; without type and numbers, of all devices."""

    allow: bool
    type: str | None = None
    major: int | None = None
    minor: int | None = None
    access: str = ""


class Memory(msgspec.Struct, frozen=True):
    """The cgroup's limit of memory."""

    limit: int


class Cpu(msgspec.Struct, frozen=True, omit_defaults=True):
    """So many microseconds of CPU time in so many."""

    quota: int | None = None
    period: int | None = None


class Pids(msgspec.Struct, frozen=True):
    """How many processes there may be."""

    limit: int


class Resources(msgspec.Struct, frozen=True, omit_defaults=True):
    """Cgroup limits."""

    devices: tuple[DeviceCgroup, ...] = msgspec.field()
    memory: Memory | None = None
    cpu: Cpu | None = None
    pids: Pids | None = None


class SyscallArg(msgspec.Struct, frozen=True, rename="camel"):
    """A condition on an argument: with MASKED_EQ, ``value`` is the mask."""

    index: int
    value: int
    value_two: int
    op: str


class Syscall(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What becomes of some system calls."""

    names: tuple[str, ...]
    action: str
    errno_ret: int
    args: tuple[SyscallArg, ...] = ()


class Seccomp(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A filter of system calls; without architectures, of the host's own alone."""

    default_action: str
    architectures: tuple[str, ...] = ()
    syscalls: tuple[Syscall, ...] = ()


class Personality(msgspec.Struct, frozen=True):
    """The execution domain, see personality(2)."""

    domain: str


class Namespace(msgspec.Struct, frozen=True):
    """A new namespace for the sandbox."""

    type: str


class Linux(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What only Linux has."""

    uid_mappings: tuple[IdMap, ...] = ()
    gid_mappings: tuple[IdMap, ...] = ()
    resources: Resources = msgspec.field()
    cgroups_path: str = ""
    namespaces: tuple[Namespace, ...]
    seccomp: Seccomp | None = None
    masked_paths: tuple[str, ...]
    readonly_paths: tuple[str, ...]
    personality: Personality | None = None


class Spec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """config.json."""

    oci_version: str = OCI_VERSION
    root: Root
    mounts: list[Mount]
    process: Process
    hostname: str
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    linux: Linux


encode = msgspec.json.Encoder().encode
"""Return the compact JSON of any value of these types, the same bytes every time."""

decode = msgspec.json.Decoder(Spec).decode
"""Return the Spec of its JSON, all parts typed."""


def _standard_mounts(pts: Mount, sys: Mount) -> tuple[Mount, ...]:
    nosuid_noexec_nodev = ("nosuid", "noexec", "nodev")
    return (
        Mount("/proc", "proc", "proc"),
        Mount("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
        pts,
        Mount("/dev/shm", "tmpfs", "shm", (*nosuid_noexec_nodev, "mode=1777", "size=65536k")),
        Mount("/dev/mqueue", "mqueue", "mqueue", nosuid_noexec_nodev),
        sys,
        Mount("/sys/fs/cgroup", "cgroup", "cgroup", (*nosuid_noexec_nodev, "relatime", "ro")),
    )


_PTS = ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620")

DEFAULT_MOUNTS = _standard_mounts(
    pts=Mount("/dev/pts", "devpts", "devpts", (*_PTS, "gid=5")),
    sys=Mount("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
)
"""oci-spec's get_default_mounts."""

ROOTLESS_MOUNTS = _standard_mounts(
    # group 5 has no mapping there, and a sysfs needs a network namespace of one's own
    pts=Mount("/dev/pts", "devpts", "devpts", _PTS),
    sys=Mount("/sys", "none", "/sys", ("nosuid", "noexec", "nodev", "ro", "rbind")),
)
"""oci-spec's get_rootless_mounts."""
