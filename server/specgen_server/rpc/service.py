"""What the methods answer, without gRPC: from a message's bytes to those of the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

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
from specgen.v1.specgen_pb2 import SpecOptions as SpecOptionsMessage
from specgen_core import SpecOptions, UnreadableMessage, read_request
from specgen_core.answer import answer_bytes
from specgen_core.wire import field_head, view_of
from tvix.build.protos.build_pb2 import BuildRequest

from ..memory import give_back_freed_memory
from ..policy import Policy
from ..quick import Quick
from ..telemetry.stats import CallRecord
from .call_options import METADATA_KEY, options_of_message, options_of_metadata
from .errors import CallerGone, status_of
from .message_limits import MessageLimits
from .side_process import SideProcess

__all__ = ["SERVICE_NAME", "OpenCall", "SpecService", "TakesLonger"]

SERVICE_NAME = specgen_pb2.DESCRIPTOR.services_by_name["SpecService"].full_name

_BulkView = view_of(GenerateSpecsRequest, opaque=("requests",), merged=("options",))
_RESULTS = GenerateSpecsResponse.RESULTS_FIELD_NUMBER
_SPEC = SpecResult.SPEC_FIELD_NUMBER


class TakesLonger(Exception):
    """To answer takes more than few milliseconds, and others wait: ask again where none do."""


class OpenCall(Protocol):
    """What a method may know of the call that it answers."""

    record: CallRecord
    others_wait: bool
    """Whether other calls wait for this answer: then it must not take long."""

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
        limits: MessageLimits | None = None,
        *,
        quick: bool = True,
        side: SideProcess | None = None,
    ) -> None:
        """Take the server's own options, policy and limits; without ``quick``, the plain way."""
        self._side = side
        self._options = options or SpecOptions()
        self._policy = policy or Policy()
        self._limits = limits or MessageLimits()
        self._quick = Quick(self._plain_message) if quick else None

    def generate_spec(self, wire: bytes, call: OpenCall) -> bytes:
        """Answer a BuildRequest with a SpecJSON, each in its wire form.

        Raises:
            InvalidRequest: the request, or the call's options, break rules.
            UnreadableMessage: the bytes are no BuildRequest.
            Denied: the operator forbids what is asked for.
            TooMany: a list in the request is longer than this server reads.
            TooLarge: the answer is longer than this server sends.
            CallerGone: nobody waits for the answer any more.
            TakesLonger: others wait for it, and have to wait for long.
        """
        return self._spec(wire, self._options_of(call), call, call.record.note_build)

    def generate_specs(self, wire: bytes, call: OpenCall) -> bytes:
        """Answer a GenerateSpecsRequest with a GenerateSpecsResponse, each in its wire form.

        What is wrong with one build, or with the message's own options, is the result of
        that build, or of all; what it raises ends the whole call.

        Raises:
            InvalidRequest: the call's options break rules.
            TooMany: there are more builds in the message than this server takes.
            UnreadableMessage: the bytes are no GenerateSpecsRequest.
            Denied: the operator forbids the call's options.
            TooLarge: the answer is longer than this server sends.
            CallerGone: nobody waits for the answer any more.
            TakesLonger: others wait for it, and have to wait for long.
        """
        defaults = self._options_of(call)
        requests, own_options = self._parts_of(wire)
        refused: Exception | None = None
        options = defaults
        try:
            options = options_of_message(own_options, defaults)
            self._policy.check_overrides(options, defaults, "options")
        except Exception as error:
            refused = error  # all builds of this message, and none of the others
        parts: list[bytes] = []
        noted: list[int] = []
        size = 0
        try:
            for request in requests:
                if not call.is_active():
                    raise CallerGone
                head, result = self._result(request, options, call, refused, noted.append)
                outer = field_head(_RESULTS, len(head) + len(result))
                size += len(outer) + len(head) + len(result)
                self._limits.check_size(size, len(wire))
                parts += (outer, head, result)
        except TakesLonger:
            noted.clear()  # it is asked again
            raise
        finally:
            for inputs in noted:
                call.record.note_build(inputs)
        return b"".join(parts)

    def _options_of(self, call: OpenCall) -> SpecOptions:
        options = options_of_metadata(call.metadata, self._options)
        if options is not self._options:
            self._policy.check_overrides(options, self._options, METADATA_KEY)
        return options

    def _spec(
        self,
        wire: bytes,
        options: SpecOptions,
        call: OpenCall,
        note_build: Callable[[int], None],
    ) -> bytes:
        spec = self._quick(wire, options, note_build=note_build) if self._quick else None
        if spec is None and call.others_wait and self._limits.takes_long(wire):
            raise TakesLonger
        if spec is None and self._side:
            spec = self._side.answer(wire, options, call.record, call.is_active)
        if spec is None:
            spec = self.answer_plainly(wire, options, note_build, call.is_active)
        self._limits.check_size(len(spec), len(wire))
        return spec

    def answer_plainly(
        self,
        wire: bytes,
        options: SpecOptions,
        note_build: Callable[[int], None],
        is_active: Callable[[], bool],
    ) -> bytes:
        """Answer a BuildRequest in the plain way, under these options.

        ``note_build`` gets to know how many inputs it has. Raises what ``generate_spec`` does.
        """
        give_back_freed_memory(len(wire))  # to receive the message took some
        self._limits.check_request(wire)
        request = read_request(wire)
        note_build(len(request.inputs))
        self._policy.check(request, options, self._options)
        self._limits.check_answer(request, len(wire))
        if not is_active():
            raise CallerGone
        answer = answer_bytes(request, options)
        del request
        give_back_freed_memory(len(wire))  # to send the answer takes some
        return answer

    def _plain_message(self, message: BuildRequest, options: SpecOptions) -> SpecJSON:
        wire = message.SerializeToString()
        return SpecJSON.FromString(self.answer_plainly(wire, options, _ignore, _always))

    def _parts_of(self, wire: bytes) -> tuple[Iterable[bytes], SpecOptionsMessage]:
        """Return the builds of a GenerateSpecsRequest, unparsed, and its options."""
        self._limits.check_bulk(wire)
        try:
            view = _BulkView.FromString(wire)
            options = b"".join(view.options)
            self._limits.check_options(options)
            return view.requests, SpecOptionsMessage.FromString(options)
        except DecodeError:
            raise UnreadableMessage(GenerateSpecsRequest.DESCRIPTOR.full_name) from None

    def _result(
        self,
        request: bytes,
        options: SpecOptions,
        call: OpenCall,
        refused: Exception | None,
        note_build: Callable[[int], None],
    ) -> tuple[bytes, bytes]:
        """Return a SpecResult in its wire form, in two parts, to be joined with others."""
        try:
            if refused:
                raise refused
            spec = self._spec(request, options, call, note_build)
        except (CallerGone, TakesLonger):
            raise
        except Exception as error:
            return b"", _error_result(error, call)
        return field_head(_SPEC, len(spec)), spec


def _error_result(error: Exception, call: OpenCall) -> bytes:
    status = status_of(error, call.record.request_id)
    violations = [
        FieldViolation(field=v.field, description=v.description) for v in status.violations
    ]
    return SpecResult(
        error=SpecError(code=status.code.value[0], message=status.message, violations=violations)
    ).SerializeToString()


def _ignore(_inputs: int) -> None:
    pass


def _always() -> bool:
    return True
