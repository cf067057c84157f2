"""The linux section: namespaces, id mappings, and what is masked or read-only."""

from __future__ import annotations

from . import oci
from .options import IdMapping, SpecOptions

__all__ = ["configure_linux"]

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


def configure_linux(*, allow_network: bool, options: SpecOptions) -> oci.Linux:
    """Return the linux section (seed: ``configure_linux``)."""
    namespaces = ["pid", "ipc", "uts", "mount"]
    if options.cgroup_namespace:
        namespaces.append("cgroup")
    if not allow_network:
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
