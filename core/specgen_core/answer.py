"""A build request in, a SpecJSON out: what GenerateSpec answers, without any gRPC."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from specgen.v1.specgen_pb2 import Diagnostic, ScratchDir, SpecJSON
from tvix.build.protos.build_pb2 import BuildRequest

from . import Diagnostic as Finding
from . import (
    Request,
    SpecOptions,
    diagnose,
    output_path,
    read_request,
    scratch_path,
)
from .memo import Memo
from .request import KNOWN_SANDBOXES, LARGEST_SANDBOX, Sandbox
from .template import spec_json
from .wire import head

__all__ = ["generate", "generate_wire"]


def generate(
    message: BuildRequest | bytes,
    options: SpecOptions,
    *,
    admit: Callable[[Request, SpecOptions], None] | None = None,
) -> SpecJSON:
    """Return the spec of a build request, and what its builder needs to know besides.

    Args:
        message: a BuildRequest, or its wire form.
        options: what the spec depends on besides.
        admit: is shown both once the request is read, and raises to refuse it.

    Raises:
        InvalidRequest: the request breaks rules.
        UnreadableMessage: the bytes are no BuildRequest.
    """
    return SpecJSON.FromString(generate_wire(message, options, admit=admit))


def generate_wire(
    message: BuildRequest | bytes,
    options: SpecOptions,
    *,
    admit: Callable[[Request, SpecOptions], None] | None = None,
) -> bytes:
    """Return what ``generate`` does, in its wire form.

    Field after field, it is put together from pieces, most of which were made for the
    builds before: half of what a message costs to make and to serialise.
    """
    request = read_request(message)
    if admit:
        admit(request, options)
    json = spec_json(request, options)
    fields = [head(_JSON, len(json)), json, _scratch_dirs[request.sandbox]]
    outputs = SpecJSON()
    for output in request.outputs:
        outputs.output_paths.add(path=output.path, bundle_path=output_path(output))
    fields.append(outputs.SerializeToString())
    fields += map(_diagnostic, diagnose(request, options))
    return b"".join(fields)


_JSON = SpecJSON.JSON_FIELD_NUMBER


def _make_scratch_dirs(sandbox: Sandbox) -> bytes:
    return SpecJSON(
        scratch_dirs=[
            ScratchDir(path=path, bundle_path=scratch_path(path)) for path in sandbox.scratch_paths
        ]
    ).SerializeToString()


_scratch_dirs = Memo(
    _make_scratch_dirs,
    limit=KNOWN_SANDBOXES,
    longest=LARGEST_SANDBOX,
    size=lambda sandbox: sandbox.size,
)


@lru_cache(maxsize=256)
def _diagnostic(found: Finding) -> bytes:
    message = Diagnostic(code=found.code, field=found.field, message=found.message)
    return SpecJSON(diagnostics=[message]).SerializeToString()
