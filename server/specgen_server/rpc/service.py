"""The servicer: each method finds its options, generates, and maps what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
from google.protobuf.message import DecodeError, Message

from specgen.v1 import specgen_pb2
from specgen.v1.specgen_pb2 import (
    FieldViolation,
    GenerateSpecsRequest,
    GenerateSpecsResponse,
    SpecError,
    SpecJSON,
    SpecResult,
)
from specgen_core import SpecOptions, UnreadableMessage, answer, read_request
from specgen_core.wire import delimited, field_head, view_of
from tvix.build.protos.build_pb2 import BuildRequest

from ..policy import Policy
from ..quick import Quick
from ..telemetry.stats import CallRecord
from .answer_size import check_answer_size
from .call_options import METADATA_KEY, options_of_message, options_of_metadata
from .errors import TooLarge, abort, status_of

__all__ = ["SERVICE_NAME", "SpecServicer"]

SERVICE_NAME = specgen_pb2.DESCRIPTOR.services_by_name["SpecService"].full_name

_BulkView = view_of(GenerateSpecsRequest, opaque=("requests",))


class SpecServicer:
    """specgen.v1.SpecService.

    The methods of the interface answer with messages, for the generated registration and
    grpcio-testing. Those below them are what calls.py registers: they get wire forms, so
    that a message that does not parse is theirs to answer, and no message is ever made of
    the answer.
    """

    def __init__(
        self,
        options: SpecOptions | None = None,
        policy: Policy | None = None,
        *,
        max_message_bytes: int = 64 * 1024 * 1024,
        quick: bool = True,
    ) -> None:
        self._options = options or SpecOptions()
        self._policy = policy or Policy()
        self._max_message_bytes = max_message_bytes
        self._quick = Quick(self._plain) if quick else None

    def GenerateSpec(  # noqa: N802
        self, request: BuildRequest | bytes, context: grpc.ServicerContext
    ) -> SpecJSON:
        """Answer with the spec of one build."""
        call = CallRecord("GenerateSpec")
        return SpecJSON.FromString(self.generate_spec(_wire(request), context, call))

    def GenerateSpecs(  # noqa: N802
        self, requests: Iterator[GenerateSpecsRequest | bytes], context: grpc.ServicerContext
    ) -> Iterator[GenerateSpecsResponse]:
        """Answer each message with one result for each build in it."""
        answers = self.generate_specs(map(_wire, requests), context, CallRecord("GenerateSpecs"))
        return map(GenerateSpecsResponse.FromString, answers)

    def generate_spec(
        self, request: bytes, context: grpc.ServicerContext, call: CallRecord
    ) -> bytes:
        """GenerateSpec, on wire forms; ``call`` gets to know of the build."""
        try:
            options = self._options_of(context)
            return self._answer(request, options, call)
        except Exception as error:
            status = status_of(error, call.request_id)
            call.field = status.violations[0].field if status.violations else ""
        abort(context, status)

    def generate_specs(
        self, requests: Iterator[bytes], context: grpc.ServicerContext, call: CallRecord
    ) -> Iterator[bytes]:
        """GenerateSpecs, on wire forms; ``call`` gets to know of each build."""
        try:
            defaults = self._options_of(context)
            for request in requests:
                yield b"".join(self._results(request, defaults, context, call))
            return
        except Exception as error:
            if not context.is_active():
                return  # the caller left, and gRPC ends its requests with an error
            status = status_of(error, call.request_id)
        abort(context, status)

    def _options_of(self, context: grpc.ServicerContext) -> SpecOptions:
        options = options_of_metadata(context.invocation_metadata(), self._options)
        if options is not self._options:
            self._policy.check_overrides(options, self._options, METADATA_KEY)
        return options

    def _answer(self, wire: bytes, options: SpecOptions, call: CallRecord) -> bytes:
        known = self._quick and self._quick(wire, options, inputs_of_builds=call.builds)
        return known or self._plain(wire, options, call.builds).SerializeToString()

    def _plain(
        self,
        message: BuildRequest | bytes,
        options: SpecOptions,
        inputs_of_builds: list[int] | None = None,
    ) -> SpecJSON:
        request = read_request(message)
        if inputs_of_builds is not None:
            inputs_of_builds.append(len(request.inputs))
        self._policy.check(request, options, self._options)
        check_answer_size(request, self._max_message_bytes)
        return answer(request, options)

    def _results(
        self,
        wire: bytes,
        defaults: SpecOptions,
        context: grpc.ServicerContext,
        call: CallRecord,
    ) -> Iterator[bytes]:
        """Yield what, joined, is the response to one message: head and result, for each."""
        try:
            view = _BulkView.FromString(wire)
        except DecodeError:
            raise UnreadableMessage(GenerateSpecsRequest.DESCRIPTOR.full_name) from None
        refused: Exception | None = None
        options = defaults
        try:
            options = options_of_message(view.options, defaults)
            self._policy.check_overrides(options, defaults, "options")
        except Exception as error:
            refused = error  # all builds of this message, and none of the others
        size = 0
        for build_request in view.requests[:]:
            if not context.is_active():
                return  # nobody waits for the rest
            if refused:
                result = _error_result(refused, call)
            else:
                result = self._result(build_request, options, call)
            if size + len(result) > self._max_message_bytes:
                result = _error_result(TooLarge(size + len(result), self._max_message_bytes), call)
            size += len(result)
            yield field_head(_RESULTS, len(result))
            yield result

    def _result(self, build_request: bytes, options: SpecOptions, call: CallRecord) -> bytes:
        try:
            spec = self._answer(build_request, options, call)
        except Exception as error:
            return _error_result(error, call)
        return delimited(_SPEC, spec)


def _error_result(error: Exception, call: CallRecord) -> bytes:
    status = status_of(error, call.request_id)
    violations = [
        FieldViolation(field=v.field, description=v.description) for v in status.violations
    ]
    return SpecResult(
        error=SpecError(code=status.code.value[0], message=status.message, violations=violations)
    ).SerializeToString()


def _wire(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


_RESULTS = GenerateSpecsResponse.RESULTS_FIELD_NUMBER
_SPEC = SpecResult.SPEC_FIELD_NUMBER
