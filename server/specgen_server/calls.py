"""What surrounds each call: threads, limits, and the record of how it went."""

from __future__ import annotations

import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc

from .errors import Overloaded, abort, status_of
from .logs import LogFormat, call_lines
from .service import SERVICE_NAME, SpecServicer
from .stats import CallRecord, CallStats, current_call

__all__ = ["Accounts", "CallPool", "Calls"]

_SPARE_THREADS = 8  # to refuse with, when all others are taken


class CallPool(ThreadPoolExecutor):
    """Threads for calls, which counts those that came in and have not ended.

    A call holds a thread from when it comes in, even while its message is still under way.
    So there are as many threads as calls may be in flight: those who stall hold none that
    others need.
    """

    def __init__(self, name: str, *, limit: int) -> None:
        super().__init__(limit + _SPARE_THREADS, thread_name_prefix=name)
        self.limit = limit
        self.in_flight = 0
        self._counting = threading.Lock()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Take a call in."""
        with self._counting:
            self.in_flight += 1
        try:
            future = super().submit(fn, *args, **kwargs)
        except BaseException:
            self._ended()
            raise
        future.add_done_callback(self._ended)
        return future

    def _ended(self, _: object = None) -> None:
        with self._counting:
            self.in_flight -= 1


class Accounts:
    """Adds up the records of calls in a thread of its own, and writes their log lines."""

    _EVERY = 0.2  # seconds

    def __init__(
        self,
        *,
        report: Callable[[CallStats], None] | None,
        log: LogFormat | None,
    ) -> None:
        self._records: deque[CallRecord] = deque()
        self.enter = self._records.append
        self._report = report
        self._log = log
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="accounts", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Account for what is left."""
        self._closing.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._closing.wait(self._EVERY):
            self._add_up()
        self._add_up()

    def _add_up(self) -> None:
        records = [self._records.popleft() for _ in range(len(self._records))]
        if self._log and records:
            sys.stderr.write(call_lines(records, self._log))
            sys.stderr.flush()
        if self._report:
            stats = CallStats()
            stats.record(records)
            self._report(stats)


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
        enter: Callable[[CallRecord], None],
        named_callers: bool,
    ) -> None:
        self._servicer = servicer
        self._enter = enter
        self._named_callers = named_callers
        self._unary = CallPool("call", limit=max_in_flight)
        # Streams last as long as their clients like; they hold no thread of the others.
        self._streams = CallPool("stream", limit=max_streams)

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
        started = time.perf_counter()
        record = self._begin("GenerateSpec", context)
        record.request_bytes = len(request)
        try:
            self._check_limit(self._unary, context)
            response = self._servicer.GenerateSpec(request, context)
            wire = response.SerializeToString()
            record.response_bytes = len(wire)
        except BaseException:
            self._end(record, started, _code(context))
            raise
        self._end(record, started, grpc.StatusCode.OK)
        return wire

    def _generate_specs(
        self, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        started = time.perf_counter()
        record = self._begin("GenerateSpecs", context)
        code: grpc.StatusCode | None = grpc.StatusCode.CANCELLED  # unless it ends by itself
        try:
            self._check_limit(self._streams, context)
            for response in self._servicer.GenerateSpecs(_counted(requests, record), context):
                wire = response.SerializeToString()
                record.response_bytes += len(wire)
                yield wire
            code = grpc.StatusCode.OK
        except Exception:
            code = _code(context)
            raise
        finally:
            self._end(record, started, code)

    def _begin(self, method: str, context: grpc.ServicerContext) -> CallRecord:
        request_id = next(
            (str(value) for key, value in context.invocation_metadata() if key == "x-request-id"),
            None,
        )
        record = CallRecord(
            method=method,
            code="",
            seconds=0.0,
            ended=0.0,
            request_bytes=0,
            response_bytes=0,
            builds=[],
            peer=context.peer(),
            caller=_caller(context) if self._named_callers else "",
            request_id=request_id or secrets.token_hex(8),
        )
        current_call.set(record)
        return record

    def _check_limit(self, pool: CallPool, context: grpc.ServicerContext) -> None:
        if pool.in_flight > pool.limit:
            abort(context, status_of(Overloaded(pool.limit)))

    def _end(self, record: CallRecord, started: float, code: grpc.StatusCode | None) -> None:
        record.code = code.name if code else "UNKNOWN"
        record.seconds = time.perf_counter() - started
        record.ended = time.time()
        self._enter(record)


def _in(pool: CallPool, behavior: Any) -> Any:
    def in_pool(request: Any, context: grpc.ServicerContext) -> Any:
        return behavior(request, context)

    in_pool.experimental_thread_pool = pool  # type: ignore[attr-defined]  # gRPC looks for it
    return in_pool


def _counted(requests: Iterator[bytes], record: CallRecord) -> Iterator[bytes]:
    for request in requests:
        record.request_bytes += len(request)
        yield request


def _code(context: grpc.ServicerContext) -> grpc.StatusCode | None:
    return context.code()  # type: ignore[attr-defined, no-any-return]


def _caller(context: grpc.ServicerContext) -> str:
    names = context.auth_context().get("x509_common_name") or [b""]
    return bytes(names[0]).decode(errors="replace")
