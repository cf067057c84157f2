"""The public way: calls by grpc.server(), each on a thread; where there is no call lane.

All methods are registered as streams, which is the same on the wire. Of a unary one gRPC would
wait for the message first, on the call's thread, and a call too many could not be refused
before that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any

import grpc

from ..telemetry.stats import CallRecord
from .calls import Calls, Limit, Method
from .errors import CallerGone, NoMessage, Status, abort, status_of

__all__ = ["PublicWay", "Threads"]

logger = logging.getLogger(__name__)

_SPARE_THREADS = 8  # to refuse with, when all others are taken

_OK = Status(grpc.StatusCode.OK, "", [])
_CUT_OFF = status_of(CallerGone())


class Threads(ThreadPoolExecutor):
    """A pool for gRPC, whose serving thread an error in ``submit`` would end for good.

    Where no thread can be started, calls wait for those that there are.
    """

    def __init__(self, most: int, name: str) -> None:
        super().__init__(1)  # which gRPC asks for; it starts none of its own
        self._most = most
        self._name = name
        self._lock = threading.Lock()
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._unfinished = 0
        self._started = 0
        self._start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a thread call a function."""
        future: Future[Any] = Future()
        with self._lock:
            self._unfinished += 1
            if self._started < min(self._unfinished, self._most):
                try:
                    self._start()
                except RuntimeError as error:
                    logger.debug("%s: calls wait for those that there are", error)
        self._calls.put((future, partial(fn, *args, **kwargs)))
        return future

    def _start(self) -> None:
        threading.Thread(target=self._work, name=self._name, daemon=True).start()
        self._started += 1

    def _work(self) -> None:
        while True:
            future, call = self._calls.get()
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            with self._lock:
                self._unfinished -= 1
            del future, call


class PublicWay:
    """Serves methods from a grpc.server()."""

    def __init__(
        self,
        calls: Calls,
        methods: Iterable[Method],
        max_message_bytes: int,  # noqa: ARG002  # the limits of threads are enough here
        options: Sequence[tuple[str, int]] = (),
    ) -> None:
        self._server = server = grpc.server(Threads(1, "unknown-method"), options=options)
        self._calls = calls
        self._lock = threading.Lock()
        self._open = 0
        self._watchers: set[_Watcher] = set()
        pools: dict[Limit, Threads] = {}
        for method in methods:
            limit = method.limit
            pool = pools.get(limit) or Threads(limit.most + _SPARE_THREADS, method.name)
            pools[limit] = pool
            server.add_registered_method_handlers(
                method.service, {method.name: _handler(method.kind, self.behavior(method), pool)}
            )

    @property
    def in_flight(self) -> int:
        """How many recorded calls have come in, and have not ended with their answer sent."""
        return self._open

    def add_port(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        """Bind an address before the start; return its port, 0 where that fails."""
        try:
            if credentials:
                return self._server.add_secure_port(address, credentials)
            return self._server.add_insecure_port(address)
        except RuntimeError:
            return 0

    def start(self) -> None:
        """Take calls."""
        self._server.start()

    def stop(self, grace: float) -> threading.Event:
        """Take no more calls, cancel after so many seconds; return what says that none is left."""
        return self._server.stop(grace)

    def let_go(self) -> None:
        """Nothing: a large answer that lingered would hold its thread."""

    def close(self) -> None:
        """Nothing: the threads end with the process."""

    def answers_changed(self) -> None:
        """Tell those who watch."""
        with self._lock:
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.update()

    def behavior(self, method: Method) -> Callable[..., Any]:
        """Return what gRPC is to call with the messages of a call and its context."""
        kinds: dict[str, Callable[..., Any]] = {
            "unary": self._unary,
            "stream": self._stream,
            "watch": self._watch,
        }
        return partial(kinds[method.kind], method)

    def _unary(
        self, method: Method, wires: Iterator[bytes], context: grpc.ServicerContext
    ) -> bytes:
        [answer] = self._stream(method, wires, context)
        return answer

    def _stream(
        self, method: Method, wires: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        call = _Call(self._calls, method, context)
        if method.recorded:
            self._count(context)
        status = _CUT_OFF  # unless it ends by itself
        try:
            method.limit.enter()
            try:
                yield from _answers(method, wires, call)
            finally:
                method.limit.leave()
            status = _OK
        except Exception as error:
            if context.is_active():
                status = status_of(error, call.record.request_id)
        finally:
            if method.recorded:
                call.record.field = status.field
                self._calls.end(call.record, status.code)
        if status is not _OK:
            abort(context, status)

    def _count(self, context: grpc.ServicerContext) -> None:
        """Count a call until its answer has been sent, or its caller has gone."""
        with self._lock:
            self._open += 1

        def ended() -> None:
            with self._lock:
                self._open -= 1

        if not context.add_callback(ended):
            ended()

    def _watch(
        self,
        method: Method,
        wires: Iterator[bytes],
        context: grpc.ServicerContext,
        send: Callable[[bytes], None],
    ) -> None:
        try:
            method.limit.enter()
            try:
                call = _Call(self._calls, method, context)
                wire = next(wires, None)
                if wire is None:
                    raise NoMessage
                method.answer(wire, call)
            finally:
                method.limit.leave()
        except Exception as error:
            status = status_of(error)
        else:
            watcher = _Watcher(send, partial(method.answer, wire, call))
            with self._lock:
                self._watchers.add(watcher)
            if context.add_callback(partial(self._forget, watcher)):
                watcher.update()
            else:
                self._forget(watcher)  # it has left already
            return
        abort(context, status)

    def _forget(self, watcher: _Watcher) -> None:
        with self._lock:
            self._watchers.discard(watcher)


def _handler(kind: str, behavior: Any, pool: Threads) -> grpc.RpcMethodHandler[Any, Any]:
    behavior.experimental_thread_pool = pool  # where gRPC looks for it
    if kind == "unary":
        return grpc.stream_unary_rpc_method_handler(behavior)
    # and so for this: a watcher takes no thread while nothing changes
    if kind == "watch":
        behavior.experimental_non_blocking = True
    return grpc.stream_stream_rpc_method_handler(behavior)


def _answers(method: Method, wires: Iterator[bytes], call: _Call) -> Iterator[bytes]:
    for wire in wires:
        if not call.is_active():
            raise CallerGone
        call.record.request_bytes += len(wire)
        answer = method.answer(wire, call)
        call.record.response_bytes += len(answer)
        yield answer
        if method.kind == "unary":
            return
    if method.kind == "unary":
        raise NoMessage


class _Call:
    others_wait = False
    """What a method may know of its call."""

    def __init__(self, calls: Calls, method: Method, context: grpc.ServicerContext) -> None:
        self.metadata = context.invocation_metadata()
        self.is_active = context.is_active
        if method.recorded:
            self.record = calls.begin(
                method.name, self.metadata, context.peer, context.auth_context
            )
        else:
            self.record = CallRecord(method.name)


class _Watcher:
    """A client that wants to hear of each change."""

    def __init__(self, send: Callable[[bytes], None], answer: Callable[[], bytes]) -> None:
        self._send = send
        self._answer = answer
        self._last: bytes | None = None
        self._sending = threading.Lock()  # held while gRPC sends, and wanted by nobody it calls

    def update(self) -> None:
        """Send the answer, if it is another than the last one sent."""
        with self._sending:
            answer = self._answer()
            if answer != self._last:
                self._last = answer
                self._send(answer)
