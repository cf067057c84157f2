"""What the methods answer, without gRPC: from a message's bytes to those of the answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Protocol

from google.protobuf.message import DecodeError

from specgen.v1 import specgen_pb2
from specgen.v1.specgen_pb2 import (
    FieldViolation,
    GenerateSpecsRequest,
    GenerateSpecsResponse,
    SpecError,
    SpecResult,
)
from specgen_core import (
    InvalidRequest,
    Request,
    SpecOptions,
    UnreadableMessage,
    Violation,
    least_size,
)
from specgen_core.answer import generate_wire
from specgen_core.wire import delimited, head, view_of

from ..policy import Policy
from ..telemetry.stats import CallRecord
from .call_options import METADATA_KEY, options_of_message, options_of_metadata
from .errors import CallerGone, TooLarge, status_of

__all__ = ["MOST_BUILDS", "SERVICE_NAME", "OpenCall", "SpecService"]

SERVICE_NAME = specgen_pb2.DESCRIPTOR.services_by_name["SpecService"].full_name

MOST_BUILDS = 10_000
"""Builds in one message of GenerateSpecs."""

_BulkView = view_of(GenerateSpecsRequest, opaque=("requests",))
_RESULTS = GenerateSpecsResponse.RESULTS_FIELD_NUMBER
_SPEC = SpecResult.SPEC_FIELD_NUMBER


class OpenCall(Protocol):
    """What a method may know of the call that it answers."""

    record: CallRecord

    @property
    def metadata(self) -> Iterable[tuple[str, str | bytes]]:
        """What the caller sent along."""

    def is_active(self) -> bool:
        """Return whether somebody still waits for the answer."""


class SpecService:
    """specgen.v1.SpecService, message by message."""

    def __init__(
        self,
        options: SpecOptions | None = None,
        policy: Policy | None = None,
        *,
        max_message_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        self._options = options or SpecOptions()
        self._policy = policy or Policy()
        self._max_message_bytes = max_message_bytes

    def generate_spec(self, wire: bytes, call: OpenCall) -> bytes:
        """Answer a BuildRequest with a SpecJSON, each in its wire form.

        Raises:
            InvalidRequest: the request, or the call's options, break rules.
            UnreadableMessage: the bytes are no BuildRequest.
            Denied: the operator forbids what is asked for.
            TooLarge: the answer is longer than this server sends.
            CallerGone: nobody waits for the answer any more.
        """
        return self._spec(wire, self._options_of(call), call)

    def generate_specs(self, wire: bytes, call: OpenCall) -> bytes:
        """Answer a GenerateSpecsRequest with a GenerateSpecsResponse, each in its wire form.

        What is wrong with one build, or with the message's own options, is the result of
        that build, or of all; what it raises ends the whole call.

        Raises:
            InvalidRequest: the call's options break rules, or there are too many builds.
            UnreadableMessage: the bytes are no GenerateSpecsRequest.
            Denied: the operator forbids the call's options.
            TooLarge: the answer is longer than this server sends.
            CallerGone: nobody waits for the answer any more.
        """
        return b"".join(self._results(wire, self._options_of(call), call))

    def _options_of(self, call: OpenCall) -> SpecOptions:
        options = options_of_metadata(call.metadata, self._options)
        if options is not self._options:
            self._policy.check_overrides(options, self._options, METADATA_KEY)
        return options

    def _spec(self, wire: bytes, options: SpecOptions, call: OpenCall) -> bytes:
        spec = generate_wire(wire, options, admit=partial(self._admit, call))
        self._check_size(len(spec))
        return spec

    def _admit(self, call: OpenCall, request: Request, options: SpecOptions) -> None:
        call.record.builds.append(len(request.input_names))
        self._policy.check(request, options, self._options)
        # a long inputs_dir stands in each mount again: see to it before, not after
        self._check_size(least_size(request))
        if not call.is_active():
            raise CallerGone

    def _check_size(self, size: int) -> None:
        if size > self._max_message_bytes:
            raise TooLarge(size, self._max_message_bytes)

    def _results(self, wire: bytes, defaults: SpecOptions, call: OpenCall) -> Iterator[bytes]:
        """Yield what, joined, is the response to one message: head and result, for each."""
        try:
            view = _BulkView.FromString(wire)
        except DecodeError:
            raise UnreadableMessage(GenerateSpecsRequest.DESCRIPTOR.full_name) from None
        if len(view.requests) > MOST_BUILDS:
            too_many = f"must hold at most {MOST_BUILDS} builds a message: use several messages"
            raise InvalidRequest([Violation("requests", too_many)], 1)
        refused: Exception | None = None
        options = defaults
        try:
            options = options_of_message(view.options, defaults)
            self._policy.check_overrides(options, defaults, "options")
        except Exception as error:
            refused = error  # all builds of this message, and none of the others
        size = 0
        for build_request in view.requests:
            if not call.is_active():
                raise CallerGone
            if refused:
                result = _error_result(refused, call)
            else:
                result = self._result(build_request, options, call)
            size += len(result)
            self._check_size(size)
            yield head(_RESULTS, len(result))
            yield result

    def _result(self, build_request: bytes, options: SpecOptions, call: OpenCall) -> bytes:
        try:
            return delimited(_SPEC, self._spec(build_request, options, call))
        except CallerGone:
            raise
        except Exception as error:
            return _error_result(error, call)


def _error_result(error: Exception, call: OpenCall) -> bytes:
    status = status_of(error, call.record.request_id)
    violations = [
        FieldViolation(field=v.field, description=v.description) for v in status.violations
    ]
    return SpecResult(
        error=SpecError(code=status.code.value[0], message=status.message, violations=violations)
    ).SerializeToString()
