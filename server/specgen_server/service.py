"""The servicer: each method finds its options, generates, and maps what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from specgen.v1 import specgen_pb2
from specgen.v1.specgen_pb2 import (
    FieldViolation,
    GenerateSpecsRequest,
    GenerateSpecsResponse,
    SpecError,
    SpecJSON,
    SpecResult,
)
from tvix.build.protos.build_pb2 import BuildRequest

from .call_options import options_of_message, options_of_metadata
from .errors import abort, status_of
from .generate import generate
from .spec import SpecOptions, UnreadableMessage
from .spec.wire import view_of

__all__ = ["SERVICE_NAME", "SpecServicer", "add_to_server"]

SERVICE_NAME = specgen_pb2.DESCRIPTOR.services_by_name["SpecService"].full_name

_BulkView = view_of(GenerateSpecsRequest, opaque=("requests",))


class SpecServicer:
    """specgen.v1.SpecService.

    Its methods take messages, as grpcio-testing passes them, or their wire form, as
    ``add_to_server`` has them: so a message that does not parse is theirs to answer.
    """

    def __init__(self, options: SpecOptions | None = None) -> None:
        self._options = options or SpecOptions()

    def GenerateSpec(  # noqa: N802
        self, request: BuildRequest | bytes, context: grpc.ServicerContext
    ) -> SpecJSON:
        """Answer with the spec of one build."""
        try:
            return generate(request, self._options_of(context))
        except Exception as error:
            status = status_of(error)
        abort(context, status)

    def GenerateSpecs(  # noqa: N802
        self,
        requests: Iterator[GenerateSpecsRequest | bytes],
        context: grpc.ServicerContext,
    ) -> Iterator[GenerateSpecsResponse]:
        """Answer each message with one result for each build in it."""
        try:
            defaults = self._options_of(context)
            for request in requests:
                yield GenerateSpecsResponse(results=self._results(request, defaults, context))
            return
        except Exception as error:
            status = status_of(error)
        abort(context, status)

    def _options_of(self, context: grpc.ServicerContext) -> SpecOptions:
        return options_of_metadata(context.invocation_metadata(), self._options)

    def _results(
        self,
        request: GenerateSpecsRequest | bytes,
        defaults: SpecOptions,
        context: grpc.ServicerContext,
    ) -> Iterator[SpecResult]:
        wire = request if isinstance(request, bytes) else request.SerializeToString()
        try:
            view = _BulkView.FromString(wire)
        except DecodeError:
            raise UnreadableMessage(GenerateSpecsRequest.DESCRIPTOR.full_name) from None
        options = options_of_message(view.options, defaults)
        for build_request in view.requests:
            if not context.is_active():
                return  # nobody waits for the rest
            yield _result(build_request, options)


def _result(build_request: bytes, options: SpecOptions) -> SpecResult:
    try:
        return SpecResult(spec=generate(build_request, options))
    except Exception as error:
        status = status_of(error)
    violations = [
        FieldViolation(field=v.field, description=v.description) for v in status.violations
    ]
    return SpecResult(
        error=SpecError(code=status.code.value[0], message=status.message, violations=violations)
    )


def add_to_server(servicer: SpecServicer, server: grpc.Server) -> None:
    """Register the servicer so that it gets the wire form of requests.

    With the generated registration, a message that does not parse would end as INTERNAL
    before any code of ours could say what is wrong.
    """
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "GenerateSpec": grpc.unary_unary_rpc_method_handler(
            servicer.GenerateSpec, response_serializer=SpecJSON.SerializeToString
        ),
        "GenerateSpecs": grpc.stream_stream_rpc_method_handler(
            servicer.GenerateSpecs, response_serializer=GenerateSpecsResponse.SerializeToString
        ),
    }
    server.add_registered_method_handlers(SERVICE_NAME, handlers)
