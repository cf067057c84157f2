"""make_spec: a build request and options in, an OCI runtime spec out.

It follows tvix, build/src/oci/spec.rs, function for function and in its order. Like that one
it does no I/O: what depends on the host comes in as options, and paths in the spec are
relative to the bundle (bundle.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from . import oci
from .bundle import input_path, scratch_path
from .options import IdMapping, SpecOptions
from .request import Request

__all__ = [
    "BUILD_GID",
    "BUILD_UID",
    "NOFILE",
    "configure_mounts",
    "input_mounts",
    "make_spec",
]

BUILD_UID = 1000
BUILD_GID = 100
NOFILE = 1024


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


def configure_process(request: Request, options: SpecOptions) -> oci.Process:
    """Return the command, its environment and user, and its limits (seed: same name)."""
    return oci.Process(
        args=request.command_args,
        env=[f"{variable.key}={variable.value}" for variable in request.environment],
        terminal=options.terminal,
        user=oci.User(BUILD_UID, BUILD_GID),
        # runtime-spec, config.md: cwd "MUST be an absolute path"
        cwd=f"/{request.working_dir}",
        capabilities=_ROOTLESS_CAPABILITIES if options.rootless else _ROOTFUL_CAPABILITIES,
        rlimits=(oci.Rlimit("RLIMIT_NOFILE", hard=NOFILE, soft=NOFILE),),
        no_new_privileges=True,
    )


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

# oci-spec's Linux::default: no device but those that every container gets
_RESOURCES = oci.Resources(devices=(oci.DeviceCgroup(allow=False, access="rwm"),))


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
        resources=_RESOURCES,
        namespaces=tuple(map(oci.Namespace, namespaces)),
        masked_paths=_MASKED_PATHS,
        readonly_paths=_READONLY_PATHS,
    )


def _id_maps(mappings: tuple[IdMapping, ...]) -> tuple[oci.IdMap, ...]:
    return tuple(oci.IdMap(m.container_id, m.host_id, m.size) for m in mappings)


# --- mounts ---------------------------------------------------------------------------

_TMP = oci.Mount("/tmp", "tmpfs", "tmpfs", ("nosuid", "noatime", "mode=700"))

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
    mounts = [*(oci.ROOTLESS_MOUNTS if options.rootless else oci.DEFAULT_MOUNTS), _TMP]
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
    return [oci.Mount(parent + name, "none", input_path(name), _RO_INPUT) for name in names]
