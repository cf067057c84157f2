"""What surrounds each call: threads, limits, and the record of how it went."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from random import getrandbits
from typing import Any

import grpc

from ..telemetry.logs import name_of
from ..telemetry.stats import CallRecord
from ..telemetry.tracing import call_tracer
from .call_pool import CallPool
from .credentials import caller_of
from .errors import Overloaded, TooLarge, abort, status_of
from .service import SERVICE_NAME, SpecServicer

__all__ = ["Calls"]


class Calls:
    """Registers a servicer so that its calls are limited and recorded.

    It gets the wire form of requests: with the generated registration, a message that does
    not parse would end as INTERNAL before any code of ours could say what is wrong.
    """

    def __init__(
        self,
        servicer: SpecServicer,
        *,
        max_in_flight: int,
        max_streams: int,
        max_message_bytes: int,
        enter: Callable[[CallRecord], None],
        named_callers: bool,
    ) -> None:
        self._tracer = call_tracer()
        self._servicer = servicer
        self._max_message_bytes = max_message_bytes
        self._enter = enter
        self._named_callers = named_callers
        self._log_lines = logging.getLogger().isEnabledFor(logging.INFO)  # else nobody asks
        # with six, 16 calls in flight take 0.95 of the time that they take with four
        self._unary = CallPool("call", limit=max_in_flight, few=6)
        # Streams last as long as their clients like; they hold no thread of the others.
        self._streams = CallPool("stream", limit=max_streams, few=max_streams)

    @property
    def in_flight(self) -> int:
        """How many calls have come in and have not ended."""
        return self._unary.in_flight + self._streams.in_flight

    def add_to_server(self, server: grpc.Server) -> None:
        """Register the methods."""
        generate_spec = self._generate_spec
        generate_specs = self._generate_specs
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "GenerateSpec": grpc.unary_unary_rpc_method_handler(_in(self._unary, generate_spec)),
            "GenerateSpecs": grpc.stream_stream_rpc_method_handler(
                _in(self._streams, generate_specs)
            ),
        }
        server.add_registered_method_handlers(SERVICE_NAME, handlers)

    def _generate_spec(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        call = self._begin("GenerateSpec", context)
        call.request_bytes = len(request)
        try:
            _check(self._unary, context)
            wire = self._servicer.generate_spec(request, context, call)
            self._check_size(wire, context)
            call.response_bytes = len(wire)
        except BaseException:
            self._end(call, _code(context))
            raise
        self._end(call, grpc.StatusCode.OK)
        return wire

    def _generate_specs(
        self, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        call = self._begin("GenerateSpecs", context)
        code = grpc.StatusCode.CANCELLED  # unless it ends by itself
        try:
            _check(self._streams, context)
            answers = self._servicer.generate_specs(_counted(requests, call), context, call)
            for wire in answers:
                self._check_size(wire, context)
                call.response_bytes += len(wire)
                yield wire
            if context.is_active():
                code = grpc.StatusCode.OK
        except Exception:
            code = _code(context)
            raise
        finally:
            self._end(call, code)

    def _check_size(self, wire: bytes, context: grpc.ServicerContext) -> None:
        if len(wire) > self._max_message_bytes:
            abort(context, status_of(TooLarge(len(wire), self._max_message_bytes)))

    def _begin(self, method: str, context: grpc.ServicerContext) -> CallRecord:
        call = CallRecord(method, began=time.perf_counter())
        metadata = context.invocation_metadata()
        for key, value in metadata:
            if key == "x-request-id":
                call.request_id = name_of(str(value))
        if self._log_lines or self._tracer:
            call.request_id = call.request_id or f"{getrandbits(64):016x}"
        if self._log_lines:
            call.peer = context.peer()
        if self._named_callers:
            call.caller = caller_of(context.auth_context())
        if self._tracer:
            call.span = self._tracer.begin(method, metadata)
        return call

    def _end(self, call: CallRecord, code: grpc.StatusCode) -> None:
        call.seconds = time.perf_counter() - call.began
        call.ended = time.time()
        if code is not grpc.StatusCode.OK:
            call.code = code.name
        self._enter(call)
        if self._tracer and call.span:
            self._tracer.end(call.span, code, call.request_id)


def _check(pool: CallPool, context: grpc.ServicerContext) -> None:
    """Refuse a call beyond the limit, and one that nobody waits for any more."""
    if pool.in_flight > pool.limit:
        abort(context, status_of(Overloaded(pool.limit)))
    if not context.is_active():
        context.abort(grpc.StatusCode.CANCELLED, "the caller is gone, or its deadline is over")


def _in(pool: CallPool, behavior: Any) -> Any:
    in_pool = partial(behavior)  # which takes attributes, as a bound method does not
    in_pool.experimental_thread_pool = pool  # type: ignore[attr-defined]  # gRPC looks for it
    return in_pool


def _counted(requests: Iterator[bytes], record: CallRecord) -> Iterator[bytes]:
    for request in requests:
        record.request_bytes += len(request)
        yield request


def _code(context: grpc.ServicerContext) -> grpc.StatusCode:
    """Return what the call was aborted with."""
    return context.code() or grpc.StatusCode.UNKNOWN  # type: ignore[attr-defined]
