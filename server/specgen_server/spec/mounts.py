"""The mounts section: what the sandbox sees of the bundle and of the host, in order."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

from . import oci
from .bundle import input_path, scratch_path
from .memo import Memo
from .options import SpecOptions
from .request import KNOWN_SANDBOXES, LARGEST_SANDBOX, Input, Request, Sandbox

__all__ = ["configure_mounts"]

_TMP = oci.encoded(oci.Mount("/tmp", "tmpfs", "tmpfs", ("nosuid", "noatime", "mode=700")))

_RW = ("rbind", "rw")
_RO = ("rbind", "ro")

# Without "nosuid" a bind mount in a user namespace fails with a bare "permission denied"
# where the source's file system has it:
# https://github.com/wllenyj/containerd/commit/42a386c8164bef16d59590c61ab00806f854d8fd
_RO_INPUT = (*_RO, "nosuid", "nodev")

# What a build with network access needs to resolve names.
_ETC_FILES = tuple(
    oci.encoded(oci.Mount(path, "none", path, _RO))
    for path in ("/etc/resolv.conf", "/etc/services", "/etc/hosts")
)


def configure_mounts(request: Request, options: SpecOptions) -> list[oci.Mount]:
    """Return the mounts (seed: ``configure_mounts``).

    A later mount covers an earlier one at or above its destination.
    """
    before, after = _around_inputs[request.sandbox, options]
    of_input = _input_mounts(request.inputs_dir).__getitem__
    return [*before, *map(of_input, request.inputs), *after]


_Mounts: TypeAlias = tuple[oci.Mount, ...]


def _make_around_inputs(key: tuple[Sandbox, SpecOptions]) -> tuple[_Mounts, _Mounts]:
    """Return the mounts before those of the inputs, and those after."""
    sandbox, options = key
    before = [*(oci.ROOTLESS_MOUNTS if options.rootless else oci.DEFAULT_MOUNTS), _TMP]
    for path in sandbox.scratch_paths:
        before.append(_bind(scratch_path(path), "/" + path, _RW))
    constraints = sandbox.constraints
    after = [_bind(path, path, _RO) for path in constraints.available_ro_paths]
    if constraints.provide_bin_sh:
        after.append(_bind(options.sandbox_shell, "/bin/sh", _RO))
    if constraints.network_access:
        after += _ETC_FILES
    return tuple(map(oci.encoded, before)), tuple(map(oci.encoded, after))


_around_inputs = Memo(
    _make_around_inputs,
    limit=KNOWN_SANDBOXES,
    longest=LARGEST_SANDBOX,
    size=lambda key: key[0].size,
)


def _bind(source: str, destination: str, options: tuple[str, ...]) -> oci.Mount:
    return oci.Mount(destination, "none", source, options)


_KNOWN_DIRS = 4
_KNOWN_INPUTS = 16_384
_LARGEST_MOUNT = 512


@lru_cache(maxsize=_KNOWN_DIRS)
def _input_mounts(inputs_dir: str) -> Memo[Input, oci.Mount]:
    """Return the mounts of inputs into a directory, encoded, by the input itself.

    Most inputs of a build are those of the build before; encoding them anew is a third
    of what a spec costs.
    """
    parent = f"/{inputs_dir}/" if inputs_dir else "/"
    return Memo(
        lambda input_: oci.encoded(_bind(input_path(input_.name), parent + input_.name, _RO_INPUT)),
        limit=_KNOWN_INPUTS,
        longest=_LARGEST_MOUNT,
        size=lambda input_: len(parent) + len(input_.name),  # both are in each that is kept
    )
