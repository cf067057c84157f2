"""Calls on the lane. Their methods are what happens next: the tags of their events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

import grpc

from ...telemetry.stats import CallRecord
from ..calls import Limit, Method
from ..errors import CallerGone, NoMessage, Overloaded, Status, UnknownMethod, status_of
from ..lingering import LARGE
from ..service import TakesLonger
from ..side_process import VERY_LARGE
from .core import auth_context, close, headers, message, ok, receive, refusal

if TYPE_CHECKING:
    from .lane import CallLane

__all__ = ["KINDS", "UNKNOWN", "Call", "Watch"]

_METADATA_TAKES = 5  # times its bytes, in gRPC's core and in Python

_OK = Status(grpc.StatusCode.OK, "", [])
_NOT_RECEIVED = Status(grpc.StatusCode.RESOURCE_EXHAUSTED, "the message is too large", [])


class Call:
    """A unary call: receives a message, answers, and sends the answer with the status.

    Until it has one, ``status`` is None. ``waits_since`` says when the call began to wait for
    its client, to send a message or to read an answer, and is 0.0 while it does not.
    """

    __slots__ = (
        *(
            "came",
            "core",
            "deadline",
            "gives_way",
            "holds",
            "lane",
            "metadata",
            "method",
            "others_wait",
            "receives",
        ),
        *("record", "status", "waits_since"),
        *("_asked_for_close", "_has_headers", "_has_left", "_is_closed", "_small", "_stays"),
    )
    very_large_from: float = VERY_LARGE  # the side process answers those
    goes_on = False  # after its first answer

    def __init__(self, lane: CallLane, method: Method, event: Any) -> None:
        self.lane = lane
        self.came = perf_counter()
        self.method = method
        self.core = event.call
        self.metadata = event.invocation_metadata
        self.deadline = self.came + event.call_details.deadline - time()  # clocks may be set
        self.status: Status | None = None
        self.waits_since = 0.0
        self.receives = False  # a message
        self.others_wait = False  # for its answer
        self.gives_way = False  # to another call
        self.holds = 0  # bytes of a large answer on its way
        self._small = 0  # bytes of what else it holds, as they count in lane.small
        self._hold_small(sum([len(value) for _, value in self.metadata]) * _METADATA_TAKES)
        self._stays = True  # the caller, as far as the core has said
        self._asked_for_close = self._is_closed = self._has_headers = self._has_left = False
        if method.recorded:
            self.record = lane.calls.begin(
                method.name, self.metadata, self._peer, partial(auth_context, self.core)
            )
        else:
            self.record = CallRecord(method.name)

    def _hold_small(self, size: int) -> None:
        self._small += size
        with self.lane.counting:
            self.lane.small += size

    def _peer(self) -> str:
        return str(self.core.peer().decode(errors="replace"))

    def is_active(self) -> bool:
        """Return whether somebody still waits for the answer."""
        return self._stays and perf_counter() < self.deadline

    def begin(self) -> None:
        """Go on with a call that has just come in."""
        self.receive()

    def receive(self) -> None:
        """Wait for a message."""
        self.waits_since = perf_counter()
        self.receives = True
        self.lane.receiving += 1
        self._start((receive(),), self._received)

    def _start(self, operations: Sequence[Any], then: Callable[[Any], None]) -> None:
        if error := self.core.start_server_batch(operations, then):
            raise RuntimeError(f"gRPC refuses a batch of operations: error {error}")

    def _ask_for_close(self) -> None:
        """See to it that ``is_active`` says so when the caller leaves."""
        self._asked_for_close = True
        self._start((close(),), self._closed)

    def _received(self, event: Any) -> None:
        self.receives = False
        self.lane.receiving -= 1
        wire = event.batch_operations[0].message()
        if self.status is not None:
            return  # it gave way to another call
        self.waits_since = 0.0
        if wire is None:
            self.finish(self._without_message() if event.success else _NOT_RECEIVED)
            return
        self.record.request_bytes += len(wire)
        self._take(wire)

    def _take(self, wire: bytes) -> None:
        """See to it that a message is answered."""
        if self.method.is_light(wire):
            self.others_wait = True
            self.lane.gathered.append((self, wire))
        else:
            self._leave_to_helper(wire)

    def _without_message(self) -> Status:
        """Return how a call ends whose client sends no message, or no more of them."""
        return status_of(NoMessage())

    def _leave_to_helper(self, wire: bytes) -> None:
        self.others_wait = False
        limit = self.method.limit
        if self.lane.closing:
            self.finish(status_of(CallerGone()))
            return
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
            self._ask_for_close()
        is_very_large = len(wire) > self.very_large_from
        jobs = self.lane.very_large if is_very_large else self.lane.large
        jobs.put((self, wire))

    def answer(self, wire: bytes) -> bytes | Status | None:
        """Return the answer to a message, or why there is none; None if that takes longer."""
        try:
            if not self.is_active():
                raise CallerGone
            answer = self.method.answer(wire, self)
            if len(answer) > LARGE:
                self.lane.make_room(len(answer))
                self.holds = len(answer)
        except TakesLonger:
            self._leave_to_helper(wire)
            return None
        except Exception as error:
            return status_of(error, self.record.request_id)
        self.record.response_bytes += len(answer)
        if not self.holds:
            self._hold_small(len(answer))
        return answer

    def send(self, answer: bytes | Status | None) -> None:
        """Send what ``answer`` returned."""
        if answer is None:
            return
        if isinstance(answer, Status):
            self.finish(answer)
        elif self.holds or self.goes_on:
            self._send_first(answer)
        else:
            self.finish(_OK, message(answer))

    def _send_first(self, answer: bytes) -> None:
        """Send an answer, and go on once it has been sent."""
        batch = [message(answer)] if self._has_headers else [headers(), message(answer)]
        self._has_headers = True
        self.waits_since = perf_counter()
        self._start(batch, self._sent)

    def _sent(self, event: Any) -> None:
        lingers = self.lane.stops and self.holds
        self._release()
        if not event.success:
            self.finish(_OK)  # which nobody sees
        elif lingers:
            self.waits_since = perf_counter()
            self.lane.lingering.append(self)
        else:
            self.go_on()

    def go_on(self) -> None:
        """Do what follows an answer that has been sent."""
        self.finish(_OK)

    def finish(self, status: Status, *operations: Any) -> None:
        """Send a status, after these operations."""
        self.status = status
        record = self.record
        record.field = status.field
        record.seconds = perf_counter() - record.began
        self.waits_since = record.began + record.seconds
        batch = [] if self._has_headers else [headers()]
        batch += operations
        batch.append(ok() if status is _OK else refusal(status))
        if not self._asked_for_close:
            batch.append(close())
        self._start(batch, self._left)

    def give_way(self, why: Overloaded) -> None:
        """End a call, for there is no place for it or another one gets its place."""
        self.gives_way = True
        if self.status is None and not self.holds:
            self.finish(status_of(why))
        else:
            self.cut_off()  # what it sends is stuck, and so would be a status

    def cut_off(self) -> None:
        """End a call whose client does not read."""
        self.waits_since = 0.0
        self.core.cancel()

    def _left(self, event: Any) -> None:
        self._has_left = True
        if not self._asked_for_close:
            self._stays = not event.batch_operations[-1].cancelled()
            self._end()
        elif self._is_closed:
            self._end()

    def _closed(self, event: Any) -> None:
        self._stays = not event.batch_operations[0].cancelled()
        self._is_closed = True
        if self._has_left:
            self._end()

    def _end(self) -> None:
        self.lane.forget(self)
        self._release()
        if self.method.recorded:
            code = self.status.code if self.status else grpc.StatusCode.UNKNOWN
            cut_off = code is grpc.StatusCode.OK and not self._stays
            self.lane.calls.end(self.record, grpc.StatusCode.CANCELLED if cut_off else code)

    def _release(self) -> None:
        self._hold_small(-self._small)
        if self.holds:
            self.lane.held.leave(self.holds)
            self.holds = 0


class Stream(Call):
    """Receives a message, has it answered, sends, and only then receives the next."""

    __slots__ = ()
    very_large_from = inf  # its builds are
    goes_on = True

    def begin(self) -> None:
        """Go on with a call that has just come in."""
        self._ask_for_close()
        self.receive()

    def _without_message(self) -> Status:
        return _OK

    def go_on(self) -> None:
        """Do what follows an answer that has been sent."""
        self.receive()


class Watch(Stream):
    """Sends the answer to its one message, and another whenever it has changed."""

    __slots__ = ("_last", "_sending", "_wire")

    def begin(self) -> None:
        """Go on with a call that has just come in."""
        self._wire: bytes | None = None
        self._last: bytes | None = None
        self._sending = False
        super().begin()

    def _without_message(self) -> Status:
        return status_of(NoMessage())

    def _take(self, wire: bytes) -> None:
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

    def _sent(self, event: Any) -> None:
        self._sending = False
        if event.success:
            self.update()

    def _closed(self, event: Any) -> None:
        self._has_left = self._has_left or self.status is None  # nothing of it is on its way
        self.status = self.status or _OK
        super()._closed(event)


class Unknown(Call):
    """Of a method that is not here."""

    __slots__ = ()

    def begin(self) -> None:
        """Say so."""
        self.finish(status_of(UnknownMethod()))


UNKNOWN = Method("", "unknown", lambda _wire, _call: b"", Limit(0, "calls"), "unknown")
"""Stands for all methods that are not here."""

KINDS: dict[str, type[Call]] = {"unary": Call, "stream": Stream, "watch": Watch, "unknown": Unknown}
"""By the kind of their method."""
