"""The call lane: calls as events of one completion queue of gRPC's core, on one thread.

grpc.server() hands each call from thread to thread, and a call that stalls holds one. Here a
call is a few events: it came in, its message is there, its answer has left. Each event's tag
is the method of ours that goes on with the call, and between two events it holds no thread.

``grpc._cython.cygrpc`` is private to grpcio, and no other room imports it. ``missing`` lists
what of it is not as it was when this was written; public_way.py then serves instead.
"""

from __future__ import annotations

import inspect
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from queue import SimpleQueue
from time import perf_counter, time
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from ..telemetry.stats import CallRecord
from .calls import Calls, Limit, Method
from .errors import CallerGone, NoMessage, Overloaded, Status, status_of, trailers_of
from .lingering import LARGE, is_read

__all__ = ["CallLane", "missing"]

logger = logging.getLogger(__name__)

_HELPERS = 2  # threads that answer the larger ones, and streams
_MOST_OPEN = 4096  # calls, most of which wait for their clients
_MOST_HELD = 128 * 1024 * 1024  # bytes of messages that wait for a helper, or for their reader
_PATIENCE = 1.0  # seconds that a call may wait for its client while others need its place

_OK = Status(grpc.StatusCode.OK, "", [])
_NOT_RECEIVED = Status(grpc.StatusCode.RESOURCE_EXHAUSTED, "the message is too large", [])

# An operation holds memory of the core and belongs to one batch, so each is made anew.
_headers = partial(cygrpc.SendInitialMetadataOperation, (), 0)
_receive = partial(cygrpc.ReceiveMessageOperation, 0)
_close = partial(cygrpc.ReceiveCloseOnServerOperation, 0)
_ok = partial(cygrpc.SendStatusFromServerOperation, (), 0, "", 0)


def _message(wire: bytes) -> Any:
    return cygrpc.SendMessageOperation(wire, 0)


def _status(status: Status) -> Any:
    code = status.code.value[0]
    return cygrpc.SendStatusFromServerOperation(trailers_of(status), code, status.message, 0)


_NEEDED: dict[str, str | None] = {
    "Server.register_method": "self fully_qualified_method",
    "Server.register_completion_queue": "self queue",
    "Server.request_registered_call": "self call_queue server_queue method tag",
    "CompletionQueue.poll": "self deadline",
    "CompletionQueue.shutdown": "self",
    "Call.start_server_batch": "self operations tag",
    "Call.cancel": "self error_code details",
    "Call.peer": "self",
    "auth_context": "call",
    "RequestCallEvent.call": None,
    "RequestCallEvent.call_details": None,
    "RequestCallEvent.invocation_metadata": None,
    "RequestCallEvent.success": None,
    "RequestCallEvent.tag": None,
    "CallDetails.deadline": None,
    "BatchOperationEvent.batch_operations": None,
    "BatchOperationEvent.success": None,
    "BatchOperationEvent.tag": None,
    "ReceiveMessageOperation.message": "self",
    "ReceiveCloseOnServerOperation.cancelled": "self",
}
"""What the lane leans on, with the parameters of what it calls."""


def missing(server: grpc.Server) -> list[str]:
    """Return the names of what the lane needs of grpcio and is not there, or not as it was."""
    lacks = [] if hasattr(server, "_cy_server") else ["grpc.Server._cy_server"]
    for name, parameters in _NEEDED.items():
        found: Any = cygrpc
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is None or (
            parameters is not None
            and list(inspect.signature(found).parameters) != parameters.split()
        ):
            lacks.append(f"cygrpc.{name}")
    for operation in (_headers, _receive, _close, _ok, partial(_message, b"")):
        try:
            operation()
        except (TypeError, AttributeError) as error:
            lacks.append(f"cygrpc's operations: {error}")
    return lacks


class CallLane:
    """Serves methods of a server that has not been started yet.

    What is written here of open calls is written by the lane's own thread. Helpers only
    answer, start the sending, and count what is held.
    """

    def __init__(
        self, server: grpc.Server, calls: Calls, methods: Iterable[Method], max_message_bytes: int
    ) -> None:
        self.calls = calls
        self.open: dict[_Call, None] = {}  # the longest open first
        self.large: SimpleQueue[tuple[_Call, bytes] | None] = SimpleQueue()
        self.held = Limit(max(_MOST_HELD, 4 * max_message_bytes), "bytes of messages are held")
        self.watching = threading.Lock()
        self.stops = False
        self.lingering: list[_Call] = []
        self._closing = False
        self._core = server._cy_server  # type: ignore[attr-defined]
        self._queue = cygrpc.CompletionQueue()
        self._core.register_completion_queue(self._queue)
        self._methods = list(methods)
        for method in self._methods:
            self._core.register_method(method.path)
        self._threads = [
            threading.Thread(target=_or_exit, args=(run,), name=name, daemon=True)
            for name, run in [("call-lane", self._serve), *[("helper", self._help)] * _HELPERS]
        ]

    @property
    def in_flight(self) -> int:
        """How many recorded calls have come in, and have not ended with their answer sent."""
        return sum(call.method.recorded for call in list(self.open))

    def start(self) -> None:
        """Take calls, once the server has been started. No thread is started after this."""
        for thread in self._threads:
            thread.start()
        for method in self._methods:
            self._request(partial(self._came, method), method)

    def close(self) -> None:
        """Have the threads end, once the server has stopped and what they are at is done."""
        for _ in range(_HELPERS):
            self.large.put(None)
        self._closing = True
        self.ended()

    def let_go(self) -> None:
        """End calls whose large answers can be taken for read; ask while the server stops."""
        self.stops = True
        for call in list(self.lingering):
            if is_read(call.waits_since):
                self.lingering.remove(call)
                call.go_on()

    def answers_changed(self) -> None:
        """Tell those who watch."""
        for call in list(self.open):
            if isinstance(call, _Watch):
                call.update()

    def make_room(self, size: int) -> None:
        """Count a message in memory; raises Overloaded where not even a slow reader gives way."""
        try:
            self.held.enter(size)
        except Overloaded:
            if not self._one_gives_way(lambda other: other.holds > 0):
                raise
            self.held.enter(size, force=True)

    def ended(self) -> None:
        """Look whether this was the last call; a queue that was shut down takes no operations."""
        if self._closing and not self.open:
            self._queue.shutdown()

    def _request(self, tag: Callable[[Any], None], method: Method) -> None:
        try:
            error = self._core.request_registered_call(self._queue, self._queue, method.path, tag)
        except ValueError:
            return  # the server stops
        if error:
            raise SystemExit(f"gRPC takes no more calls of {method.path}: error {error}")

    def _serve(self) -> None:
        poll = self._queue.poll
        while True:
            event = poll()
            go_on = event.tag
            if go_on is None:
                return
            try:
                go_on(event)
            except Exception:
                logger.exception("unexpected error on the call lane")
                self._give_up(event)
            event = go_on = None  # or the call would be kept until the next event

    def _came(self, method: Method, event: Any) -> None:
        if not event.success:
            return  # the server stops
        self._request(event.tag, method)
        full = len(self.open) >= _MOST_OPEN
        call = _KINDS[method.kind](self, method, event)
        self.open[call] = None
        if full and not self._one_gives_way():
            call.finish(status_of(Overloaded(_MOST_OPEN, "calls are open")))
        else:
            call.begin()

    def _one_gives_way(self, kind: Callable[[_Call], bool] = lambda _: True) -> bool:
        """End the one of a kind that has waited for its client the longest, if it was long."""
        long_ago = perf_counter() - _PATIENCE
        for call in list(self.open):
            if 0 < call.waits_since < long_ago and kind(call):
                call.give_way()
                return True
        return False

    def _give_up(self, event: Any) -> None:
        call = getattr(event.tag, "__self__", None)
        if isinstance(call, _Call):
            self.open.pop(call, None)
            call.core.cancel()
        else:
            event.call.cancel()

    def _help(self) -> None:
        while job := self.large.get():
            call, wire = job
            try:
                call.answer(wire)
            except Exception:
                logger.exception("unexpected error in a helper of the call lane")
                call.core.cancel()
            self.held.leave(len(wire))
            call.method.limit.leave()
            del job, call, wire


def _or_exit(run: Callable[[], None]) -> None:
    """Run what the process cannot do without: else it would listen and answer nothing."""
    try:
        run()
    except BaseException:
        logger.critical("a thread of the call lane ended: so does the process", exc_info=True)
        os._exit(70)


class _Call:
    """A unary call. Its methods are what happens next: the tags of its events."""

    __slots__ = (
        *("core", "deadline", "holds", "lane", "metadata", "method", "record", "status"),
        *("waits_since", "_asked_for_close", "_has_headers", "_has_left", "_is_closed", "_stays"),
    )
    large_from: float = LARGE  # answering a smaller message takes few milliseconds

    def __init__(self, lane: CallLane, method: Method, event: Any) -> None:
        self.lane = lane
        self.method = method
        self.core = event.call
        self.metadata = event.invocation_metadata
        self.deadline = event.call_details.deadline
        self.status: Status | None = None
        self.holds = 0  # bytes of an answer on its way
        self.waits_since = 0.0  # when it began to wait for its client; 0.0 while it does not
        self._stays = True  # as far as the core has said
        self._asked_for_close = self._is_closed = self._has_headers = self._has_left = False
        if method.recorded:
            self.record = lane.calls.begin(
                method.name, self.metadata, self._peer, self._auth_context
            )
        else:
            self.record = CallRecord(method.name)

    def _peer(self) -> str:
        return str(self.core.peer().decode(errors="replace"))

    def _auth_context(self) -> dict[str, Any]:
        given = cygrpc.auth_context(self.core) or {}
        return {key.decode(): value for key, value in given.items()}

    def is_active(self) -> bool:
        """Return whether somebody still waits for the answer."""
        return self._stays and time() < self.deadline

    def start(self, operations: Sequence[Any], then: Callable[[Any], None]) -> None:
        if error := self.core.start_server_batch(operations, then):
            raise RuntimeError(f"gRPC refuses a batch of operations: error {error}")

    def ask_for_close(self) -> None:
        """See to it that ``is_active`` says so when the caller leaves."""
        self._asked_for_close = True
        self.start((_close(),), self.closed)

    def begin(self) -> None:
        self.receive()

    def receive(self) -> None:
        self.waits_since = perf_counter()
        self.start((_receive(),), self.received)

    def received(self, event: Any) -> None:
        wire = event.batch_operations[0].message()
        if self.status is not None:
            return  # it gave way to another call
        self.waits_since = 0.0
        if wire is None:
            self.finish(self.without_message() if event.success else _NOT_RECEIVED)
            return
        self.record.request_bytes += len(wire)
        if len(wire) <= self.large_from:
            self.answer(wire)
        else:
            self.leave_to_helper(wire)

    def without_message(self) -> Status:
        return status_of(NoMessage())

    def leave_to_helper(self, wire: bytes) -> None:
        limit = self.method.limit
        try:
            limit.enter(force=self._has_headers)  # a stream that got in stays in
            try:
                self.lane.make_room(len(wire))
            except Overloaded:
                limit.leave()
                raise
        except Overloaded as error:
            self.finish(status_of(error))
            return
        if not self._asked_for_close:
            self.ask_for_close()
        self.lane.large.put((self, wire))

    def answer(self, wire: bytes) -> None:
        try:
            if not self.is_active():
                raise CallerGone
            answer = self.method.answer(wire, self)
            if len(answer) > LARGE:
                self.lane.make_room(len(answer))
                self.holds = len(answer)
        except Exception as error:
            self.finish(status_of(error, self.record.request_id))
            return
        self.record.response_bytes += len(answer)
        self.send(answer)

    def send(self, answer: bytes) -> None:
        if self.holds:
            self.send_first(answer)
        else:
            self.finish(_OK, _message(answer))

    def send_first(self, answer: bytes) -> None:
        """Send an answer, and what follows it once it has been sent."""
        batch = [_message(answer)] if self._has_headers else [_headers(), _message(answer)]
        self._has_headers = True
        self.waits_since = perf_counter()
        self.start(batch, self.sent)

    def sent(self, event: Any) -> None:
        lingers = self.lane.stops and self.holds
        self.release()
        if not event.success:
            self.finish(_OK)  # which nobody sees
        elif lingers:
            self.waits_since = perf_counter()
            self.lane.lingering.append(self)
        else:
            self.go_on()

    def go_on(self) -> None:
        self.finish(_OK)

    def finish(self, status: Status, *operations: Any) -> None:
        """Send a status, after these operations."""
        self.status = status
        record = self.record
        record.seconds = perf_counter() - record.began
        self.waits_since = record.began + record.seconds
        batch = [] if self._has_headers else [_headers()]
        batch += operations
        batch.append(_ok() if status is _OK else _status(status))
        if not self._asked_for_close:
            batch.append(_close())
        self.start(batch, self.left)

    def left(self, event: Any) -> None:
        self._has_left = True
        if not self._asked_for_close:
            self._stays = not event.batch_operations[-1].cancelled()
            self.end()
        elif self._is_closed:
            self.end()

    def closed(self, event: Any) -> None:
        self._stays = not event.batch_operations[0].cancelled()
        self._is_closed = True
        if self._has_left:
            self.end()

    def give_way(self) -> None:
        """End a call that waits for its client."""
        self.waits_since = 0.0
        if self.status is None and not self.holds:
            self.finish(status_of(Overloaded(_MOST_OPEN, "calls are open")))
        else:
            self.core.cancel()  # what it sends is stuck, and so would be a status

    def end(self) -> None:
        self.lane.open.pop(self, None)
        self.lane.ended()
        self.release()
        if self.method.recorded:
            code = self.status.code if self.status else grpc.StatusCode.UNKNOWN
            cut_off = code is grpc.StatusCode.OK and not self._stays
            self.lane.calls.end(self.record, grpc.StatusCode.CANCELLED if cut_off else code)

    def release(self) -> None:
        if self.holds:
            self.lane.held.leave(self.holds)
            self.holds = 0


class _Stream(_Call):
    """Receives a message, has it answered, sends, and only then receives the next."""

    __slots__ = ()
    large_from: float = -1  # a small message can hold many builds

    def begin(self) -> None:
        self.ask_for_close()
        self.receive()

    def without_message(self) -> Status:
        return _OK

    def send(self, answer: bytes) -> None:
        self.send_first(answer)

    def go_on(self) -> None:
        self.receive()


class _Watch(_Stream):
    """Sends an answer to its one message, and another whenever that is another."""

    __slots__ = ("_last", "_sending", "_wire")
    large_from = float("inf")

    def begin(self) -> None:
        self._wire: bytes | None = None
        self._last: bytes | None = None
        self._sending = False
        super().begin()

    def without_message(self) -> Status:
        return status_of(NoMessage())

    def answer(self, wire: bytes) -> None:
        self._wire = wire
        self.update()

    def update(self) -> None:
        """Send the answer if it has changed; any thread may ask for it."""
        with self.lane.watching:
            if self._wire is None or self._sending or self.status is not None:
                return
            try:
                answer = self.method.answer(self._wire, self)
            except Exception as error:
                self.finish(status_of(error))
                return
            if answer != self._last:
                self._last = answer
                self._sending = True
                self.send(answer)

    def sent(self, event: Any) -> None:
        self._sending = False
        if event.success:
            self.update()

    def closed(self, event: Any) -> None:
        self._has_left = self._has_left or self.status is None  # nothing of it is on its way
        self.status = self.status or _OK
        super().closed(event)


_KINDS: dict[str, type[_Call]] = {"unary": _Call, "stream": _Stream, "watch": _Watch}
