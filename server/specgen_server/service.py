"""The servicer: each method finds its options, generates, and maps what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator

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

from .call_options import METADATA_KEY, options_of_message, options_of_metadata
from .errors import abort, status_of
from .generate import generate
from .policy import Policy
from .spec import Request, SpecOptions, UnreadableMessage
from .spec.wire import view_of
from .stats import current_call

__all__ = ["SERVICE_NAME", "SpecServicer"]

SERVICE_NAME = specgen_pb2.DESCRIPTOR.services_by_name["SpecService"].full_name

_BulkView = view_of(GenerateSpecsRequest, opaque=("requests",))


class SpecServicer:
    """specgen.v1.SpecService.

    Its methods take messages, as grpcio-testing passes them, or their wire form, as
    calls.py registers them: so a message that does not parse is theirs to answer.
    """

    def __init__(self, options: SpecOptions | None = None, policy: Policy | None = None) -> None:
        self._options = options or SpecOptions()
        self._policy = policy or Policy()

    def GenerateSpec(  # noqa: N802
        self, request: BuildRequest | bytes, context: grpc.ServicerContext
    ) -> SpecJSON:
        """Answer with the spec of one build."""
        try:
            return self._generate(request, self._options_of(context))
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
        options = options_of_metadata(context.invocation_metadata(), self._options)
        self._policy.check_overrides(options, self._options, METADATA_KEY)
        return options

    def _generate(self, build_request: BuildRequest | bytes, options: SpecOptions) -> SpecJSON:
        return generate(build_request, options, admit=lambda read: self._admit(read, options))

    def _admit(self, request: Request, options: SpecOptions) -> None:
        call = current_call.get()
        if call:
            call.builds.append(len(request.inputs))
        self._policy.check(request, options, self._options)

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
        self._policy.check_overrides(options, defaults, "options")
        for build_request in view.requests:
            if not context.is_active():
                return  # nobody waits for the rest
            yield self._result(build_request, options)

    def _result(self, build_request: bytes, options: SpecOptions) -> SpecResult:
        try:
            return SpecResult(spec=self._generate(build_request, options))
        except Exception as error:
            status = status_of(error)
        violations = [
            FieldViolation(field=v.field, description=v.description) for v in status.violations
        ]
        return SpecResult(
            error=SpecError(
                code=status.code.value[0], message=status.message, violations=violations
            )
        )
