"""The mounts section: what the sandbox sees of the bundle and of the host, in order."""

from __future__ import annotations

from . import oci
from .bundle import input_path, scratch_path
from .options import SpecOptions
from .request import Request

__all__ = ["configure_mounts", "input_mount"]

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
    """Return the mounts (seed: ``configure_mounts``).

    A later mount covers an earlier one at or above its destination.
    """
    mounts = [*(oci.ROOTLESS_MOUNTS if options.rootless else oci.DEFAULT_MOUNTS), _TMP]
    for path in request.scratch_paths:
        mounts.append(_bind(scratch_path(path), "/" + path, _RW))
    for name in request.input_names:
        mounts.append(input_mount(request.inputs_dir, name))
    constraints = request.constraints
    for path in constraints.available_ro_paths:
        mounts.append(_bind(path, path, _RO))
    if constraints.provide_bin_sh:
        mounts.append(_bind(options.sandbox_shell, "/bin/sh", _RO))
    if constraints.network_access:
        mounts += (_bind(path, path, _RO) for path in _ETC_FILES)
    return mounts


def input_mount(inputs_dir: str, name: str) -> oci.Mount:
    """Return the mount of the input of this name."""
    parent = f"/{inputs_dir}/" if inputs_dir else "/"
    return _bind(input_path(name), parent + name, _RO_INPUT)


def _bind(source: str, destination: str, options: tuple[str, ...]) -> oci.Mount:
    return oci.Mount(destination, "none", source, options)
