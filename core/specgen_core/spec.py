"""make_spec: a build request and options in, an OCI runtime spec out.

It follows tvix, build/src/oci/spec.rs, function for function and in its order. Like that one
it does no I/O: what depends on the host comes in as options, and paths in the spec are
relative to the bundle (bundle.py).
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterable

from . import oci
from .bundle import input_path, scratch_path
from .options import IdMapping, SpecOptions
from .profiles import Nofile, device_of
from .request import Request

__all__ = [
    "BUILD_GID",
    "BUILD_UID",
    "configure_mounts",
    "input_mounts",
    "make_spec",
    "needs_personality",
]

BUILD_UID = 1000
BUILD_GID = 100


def make_spec(request: Request, options: SpecOptions) -> oci.Spec:
    """Return the spec of a valid request (seed: ``make_spec``)."""
    return oci.Spec(
        process=configure_process(request, options),
        linux=configure_linux(request, options),
        root=oci.Root("root", readonly=True),
        hostname="localhost",
        mounts=configure_mounts(request, options),
    )


# --- process --------------------------------------------------------------------------


def _in_every_set(*capabilities: str) -> oci.Capabilities:
    return oci.Capabilities(*(capabilities,) * 5)


_ROOTFUL_CAPABILITIES = _in_every_set("CAP_AUDIT_WRITE", "CAP_KILL")

# Within a user namespace of its own, root's powers end at the namespace.
_ROOTLESS_CAPABILITIES = _in_every_set(
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)


_NO_CAPABILITIES = oci.Capabilities(*((),) * 5)


def configure_process(request: Request, options: SpecOptions) -> oci.Process:
    """Return the command, its environment and user, and its limits (seed: same name)."""
    return oci.Process(
        args=request.command_args,
        env=[f"{variable.key}={variable.value}" for variable in request.environment],
        terminal=options.terminal,
        user=oci.User(BUILD_UID, BUILD_GID),
        # runtime-spec, config.md: cwd "MUST be an absolute path"
        cwd=f"/{request.working_dir}",
        capabilities=_capabilities(options),
        rlimits=_rlimits(options.nofile),
        no_new_privileges=True,
    )


def _capabilities(options: SpecOptions) -> oci.Capabilities:
    if options.drop_capabilities:
        return _NO_CAPABILITIES
    return _ROOTLESS_CAPABILITIES if options.rootless else _ROOTFUL_CAPABILITIES


def _rlimits(nofile: Nofile) -> tuple[oci.Rlimit, ...]:
    if not nofile.hard:
        return ()
    return (oci.Rlimit("RLIMIT_NOFILE", hard=nofile.hard, soft=nofile.soft),)


# --- linux ----------------------------------------------------------------------------

_MASKED_PATHS = (
    "/proc/kcore",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
)

_READONLY_PATHS = (
    "/proc/asound",
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)


def configure_linux(request: Request, options: SpecOptions) -> oci.Linux:
    """Return namespaces, id mappings, and what is masked or read-only (seed: same name)."""
    namespaces = ["pid", "ipc", "uts", "mount"]
    if options.cgroup_namespace:
        namespaces.append("cgroup")
    if not request.constraints.network_access:
        namespaces.append("network")
    if options.rootless:
        namespaces.append("user")

    return oci.Linux(
        uid_mappings=_id_maps(options.uid_mappings),
        gid_mappings=_id_maps(options.gid_mappings),
        resources=_resources(request, options),
        cgroups_path=options.cgroups_path,
        namespaces=tuple(map(oci.Namespace, namespaces)),
        seccomp=_seccomp(request, options),
        masked_paths=_MASKED_PATHS,
        readonly_paths=_READONLY_PATHS,
        personality=_personality(request, options),
    )


def _id_maps(mappings: tuple[IdMapping, ...]) -> tuple[oci.IdMap, ...]:
    return tuple(oci.IdMap(m.container_id, m.host_id, m.size) for m in mappings)


# oci-spec's Linux::default: no device but those that every container gets
_DENY_ALL = oci.DeviceCgroup(allow=False, access="rwm")


def _resources(request: Request, options: SpecOptions) -> oci.Resources:
    rules: list[oci.DeviceCgroup] = []
    if options.device_rules == "deny":
        rules.append(_DENY_ALL)
        rules += (
            oci.DeviceCgroup(True, device.type, device.major, device.minor, device.access)
            for device in map(device_of, options.devices)
            if device and device.path in request.constraints.available_ro_paths
        )
    limits = options.resources
    cpu = oci.Cpu(limits.cpu_quota_us or None, limits.cpu_period_us or None)
    return oci.Resources(
        devices=tuple(rules),
        memory=oci.Memory(limits.memory_bytes) if limits.memory_bytes else None,
        cpu=cpu if cpu != oci.Cpu() else None,
        pids=oci.Pids(limits.pids) if limits.pids else None,
    )


def _seccomp(request: Request, options: SpecOptions) -> oci.Seccomp | None:
    """Return Nix's filter: no setuid and setgid bits by chmod, and no extended attributes.

    Source: Nix, src/libstore, ``setupSeccomp``: chmod to setuid or setgid is EPERM, extended
    attributes are ENOTSUP, whichever of the host's architectures the build speaks.
    """
    if options.seccomp == "none":
        return None
    machine = request.constraints.system.partition("-")[0]
    return oci.Seccomp(
        default_action="SCMP_ACT_ALLOW",
        architectures=_ARCHITECTURES.get(machine, ()),
        syscalls=(
            *(
                oci.Syscall(names, "SCMP_ACT_ERRNO", errno.EPERM, (_with_bit(index, bit),))
                for bit in (stat.S_ISUID, stat.S_ISGID)
                for names, index in ((("chmod", "fchmod"), 1), (("fchmodat", "fchmodat2"), 2))
            ),
            oci.Syscall(_EXTENDED_ATTRIBUTES, "SCMP_ACT_ERRNO", errno.ENOTSUP),
        ),
    )


# Nix blocks nine of these. Linux 6.13 has one more to set them by, which would get around the rest;
# runtimes whose libseccomp does not know it yet leave it out.
_EXTENDED_ATTRIBUTES = (
    *(f"{how}{call}xattr" for call in ("list", "get", "set") for how in ("", "l", "f")),
    "setxattrat",
)


def _with_bit(index: int, bit: int) -> oci.SyscallArg:
    return oci.SyscallArg(index, bit, bit, "SCMP_CMP_MASKED_EQ")


def _architectures(*names: str) -> tuple[str, ...]:
    return tuple(f"SCMP_ARCH_{name}" for name in names)


_X86 = _architectures("X86_64", "X86", "X32")
_ARM = _architectures("AARCH64", "ARM")
_ARCHITECTURES = {
    **dict.fromkeys(("x86_64", "i686"), _X86),
    **dict.fromkeys(("aarch64", "armv5tel", "armv6l", "armv7l"), _ARM),
}
"""What a host of a system's machine speaks; without an entry, it is its own alone."""

# Nix, src/libstore: a build of these on a 64-bit host gets PER_LINUX32
_SYSTEMS_OF_32_BITS = ("i686-linux", "armv5tel-linux", "armv6l-linux", "armv7l-linux")


def needs_personality(system: str) -> bool:
    """Whether builds of a system see another machine than its own without a personality."""
    return system in _SYSTEMS_OF_32_BITS


def _personality(request: Request, options: SpecOptions) -> oci.Personality | None:
    if options.personality == "system" and needs_personality(request.constraints.system):
        return oci.Personality("LINUX32")
    return None


# --- mounts ---------------------------------------------------------------------------

_RW = ("rbind", "rw")
_RO = ("rbind", "ro")

# Without "nosuid" a bind mount in a user namespace fails with a bare "permission denied"
# where the source's file system has it:
# https://github.com/wllenyj/containerd/commit/42a386c8164bef16d59590c61ab00806f854d8fd
_RO_INPUT = (*_RO, "nosuid", "nodev")

# What a build with network access needs to resolve names.
_ETC_FILES = ("/etc/resolv.conf", "/etc/services", "/etc/hosts")


def configure_mounts(request: Request, options: SpecOptions) -> list[oci.Mount]:
    """Return what the sandbox sees of the bundle and of the host (seed: same name).

    In order: a later mount covers an earlier one at or above its destination.
    """
    constraints = request.constraints
    tmp = ("nosuid", "noatime", f"mode={options.tmp_mode}")
    mounts = [
        *(oci.ROOTLESS_MOUNTS if options.rootless else oci.DEFAULT_MOUNTS),
        oci.Mount("/tmp", "tmpfs", "tmpfs", tmp),
    ]
    for path in request.scratch_paths:
        mounts.append(oci.Mount(f"/{path}", "none", scratch_path(path), _RW))
    mounts += input_mounts(request.inputs_dir, request.inputs)
    for path in constraints.available_ro_paths:
        mounts.append(oci.Mount(path, "none", path, _RO))
    if constraints.provide_bin_sh:
        mounts.append(oci.Mount("/bin/sh", "none", options.sandbox_shell, _RO))
    if constraints.network_access:
        mounts += (oci.Mount(path, "none", path, _RO) for path in _ETC_FILES)
    return mounts


def input_mounts(inputs_dir: str, names: Iterable[str]) -> list[oci.Mount]:
    """Return the mounts of the inputs of these names."""
    parent = f"/{inputs_dir}/" if inputs_dir else "/"
    before = input_path("")
    return [oci.Mount(parent + name, "none", before + name, _RO_INPUT) for name in names]
