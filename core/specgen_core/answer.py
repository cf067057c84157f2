"""What GenerateSpec answers: a build request in, a SpecJSON out, without any gRPC."""

from __future__ import annotations

from specgen.v1.specgen_pb2 import SpecJSON
from tvix.build.protos.build_pb2 import BuildRequest

from . import oci
from .bundle import output_path, scratch_path
from .diagnostics import diagnose
from .layout import Layout
from .options import SpecOptions
from .reading import read_request
from .request import Request
from .skeleton import Skeleton
from .spec import make_spec
from .wire import field_head

__all__ = ["answer", "answer_bytes", "generate"]


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
    return SpecJSON.FromString(answer_bytes(request, options))


def answer_bytes(request: Request, options: SpecOptions) -> bytes:
    """Return what ``answer`` does in its wire form, without a copy of the JSON in a message."""
    spec = make_spec(request, options)
    answered = SpecJSON()
    for path in request.scratch_paths:
        answered.scratch_dirs.add(path=path, bundle_path=scratch_path(path))
    for output in request.outputs:
        answered.output_paths.add(path=output.path, bundle_path=output_path(output))
    for found in diagnose(request, options, spec):
        answered.diagnostics.add(code=found.code, field=found.field, message=found.message)
    if options.skeleton or request.additional_files:
        _add_skeleton(answered, request, options, Layout(request, spec.mounts))
    json = oci.encode(spec)
    rest = answered.SerializeToString()
    del spec, answered  # of a large request, they take more memory than all else
    return b"".join((field_head(SpecJSON.JSON_FIELD_NUMBER, len(json)), json, rest))


def _add_skeleton(
    answered: SpecJSON, request: Request, options: SpecOptions, layout: Layout
) -> None:
    skeleton = Skeleton(request, layout)
    for file, place in zip(request.additional_files, skeleton.file_paths):
        answered.additional_files.add(path=file.path, bundle_path=place)
    if not options.skeleton:
        return
    listed = {"scratch", *(found.bundle_path for found in answered.scratch_dirs)}
    listed.update(skeleton.file_paths)
    for path, entry in skeleton.entries.items():
        if path not in listed:
            answered.root_entries.add(
                bundle_path=path, mode=entry.mode, kind=entry.kind, contents=entry.contents
            )
