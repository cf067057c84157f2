"""The OCI runtime spec of a build request, section by section.

It follows tvix's ``make_spec`` (build/src/oci/spec.rs) part for part. Like that one it
does no I/O: what depends on the host comes in as options, and paths in the spec are
relative to the bundle (see bundle.py).
"""

from __future__ import annotations

from . import oci
from .linux import configure_linux
from .mounts import configure_mounts
from .options import SpecOptions
from .process import configure_process
from .request import Request

__all__ = ["least_size", "make_spec"]

_ROOT = oci.Root("root", readonly=True)


def least_size(request: Request) -> int:
    """Return a size, in bytes, that the spec's JSON has at least.

    It counts what a small request can make much of, and what a large one has much of.
    """
    scratch = sum(map(len, request.scratch_paths)) + len(request.scratch_paths) * _A_MOUNT
    size = scratch + len(request.input_names) * (_A_MOUNT + len(request.inputs_dir))
    if request.wire_size > _LARGE:
        size += sum(len(env_var.json) for env_var in request.environment)
    return size


_A_MOUNT = len('{"destination":"/","type":"none","source":"","options":["rbind","rw"]},')
_LARGE = 1 << 20


def make_spec(request: Request, options: SpecOptions) -> oci.Spec:
    """Return the spec of a valid request (seed: ``make_spec``)."""
    return oci.Spec(
        process=configure_process(request, options),
        linux=configure_linux(allow_network=request.constraints.network_access, options=options),
        root=_ROOT,
        hostname="localhost",
        mounts=configure_mounts(request, options),
    )
