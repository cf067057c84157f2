"""What GenerateSpec answers: a build request in, a SpecJSON out, without any gRPC."""

from __future__ import annotations

from specgen.v1.specgen_pb2 import Diagnostic, OutputPath, ScratchDir, SpecJSON
from tvix.build.protos.build_pb2 import BuildRequest

from . import oci
from .bundle import output_path, scratch_path
from .diagnostics import diagnose
from .options import SpecOptions
from .reading import read_request
from .request import Request
from .spec import make_spec

__all__ = ["answer", "generate"]


def generate(message: BuildRequest | bytes, options: SpecOptions) -> SpecJSON:
    """Return the spec of a build request, and what its builder needs to know besides.

    Args:
        message: a BuildRequest, or its wire form.
        options: what the spec depends on besides.

    Raises:
        InvalidRequest: the request breaks rules.
        UnreadableMessage: the bytes are no BuildRequest.
    """
    return answer(read_request(message), options)


def answer(request: Request, options: SpecOptions) -> SpecJSON:
    """Return what ``generate`` does, for a request that was read."""
    spec = make_spec(request, options)
    return SpecJSON(
        json=oci.encode(spec).decode(),
        scratch_dirs=[
            ScratchDir(path=path, bundle_path=scratch_path(path)) for path in request.scratch_paths
        ],
        output_paths=[
            OutputPath(path=output.path, bundle_path=output_path(output))
            for output in request.outputs
        ],
        diagnostics=[
            Diagnostic(code=found.code, field=found.field, message=found.message)
            for found in diagnose(request, options, spec.mounts)
        ],
    )
