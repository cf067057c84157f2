"""A build request in, a SpecJSON out: what GenerateSpec answers, without any gRPC."""

from __future__ import annotations

from collections.abc import Callable

from specgen.v1.specgen_pb2 import Diagnostic, OutputPath, ScratchDir, SpecJSON
from tvix.build.protos.build_pb2 import BuildRequest

from .spec import (
    Request,
    SpecOptions,
    diagnose,
    make_spec,
    oci,
    output_path,
    read_request,
    scratch_path,
)

__all__ = ["generate"]


def generate(
    message: BuildRequest | bytes,
    options: SpecOptions,
    *,
    admit: Callable[[Request], None] | None = None,
) -> SpecJSON:
    """Return the spec of a build request, and what its builder needs to know besides.

    Args:
        message: a BuildRequest, or its wire form.
        options: what the spec depends on besides.
        admit: is shown the request once it is read, and raises to refuse it.

    Raises:
        InvalidRequest: the request breaks rules.
        UnreadableMessage: the bytes are no BuildRequest.
    """
    request = read_request(message)
    if admit:
        admit(request)
    return SpecJSON(
        # protobuf takes UTF-8 for a string as it is, which spares decoding it
        json=oci.encode(make_spec(request, options)),  # type: ignore[arg-type]
        scratch_dirs=[
            ScratchDir(path=path, bundle_path=scratch_path(path)) for path in request.scratch_paths
        ],
        output_paths=[
            OutputPath(path=output.path, bundle_path=output_path(output))
            for output in request.outputs
        ],
        diagnostics=[
            Diagnostic(code=found.code, field=found.field, message=found.message)
            for found in diagnose(request, options)
        ],
    )
