"""The lane itself: its queue, its threads, and who gives way when it is full."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import takewhile
from math import inf
from queue import SimpleQueue
from time import perf_counter
from typing import Any, TypeAlias

import grpc

from ..calls import Calls, Limit, Method, Refusals
from ..errors import Overloaded
from ..lingering import is_read
from .calls import KINDS, UNKNOWN, Call, Watch
from .core import add_port, completion_queue, core_server

__all__ = ["CallLane"]

logger = logging.getLogger(__name__)

Jobs: TypeAlias = "SimpleQueue[tuple[Call, bytes] | None]"
"""For a thread that answers messages which take longer."""

_MOST_HELD = 128 * 1024 * 1024  # bytes of messages that wait for a helper, or for their reader
_SWITCH_EVERY = 0.0005  # seconds that a helper keeps Python from the lane; by default it is 0.005
_TOGETHER = 16  # messages answered before their answers are sent
_LOOK_EVERY = 16  # messages that are answered alone, to see whether there are others
_MOST_OPEN = 4096  # calls, most of which wait for their clients
_MOST_RECEIVE = 128  # calls that receive a message for long, and one more for each at work
_HOLD_BACK = 0.002  # seconds that a message waits for others to come, and an answer for theirs
_STAY_AWAKE = 0.00005  # seconds to look for the next call, before sleeping until it comes
_DO_NOT_WAIT = 0.0  # a deadline that has passed
_MOST_SMALL = 64 * 1024 * 1024  # bytes
_FOR_HEALTH = 1.5  # times as many, and as much, of all
_PATIENCE = 1.0  # seconds that a call may wait for its client while others need its place


class CallLane:
    """Serves methods from a server of its own, whose core no other thread polls.

    What is written here of open calls is written by the lane's own thread. Helpers only
    answer, start the sending, and count what is held.
    """

    def __init__(
        self,
        calls: Calls,
        methods: Iterable[Method],
        max_message_bytes: int,
        options: Sequence[tuple[str, int]] = (),
    ) -> None:
        self.calls = calls
        self.open: dict[Call, None] = {}  # the longest open first
        self.gathered: deque[tuple[Call, bytes]] = deque()
        self.large: Jobs = SimpleQueue()
        self.very_large: Jobs = SimpleQueue()
        self.held = Limit(max(_MOST_HELD, 4 * max_message_bytes), "bytes of messages are held")
        self.small = 0  # bytes of metadata and of answers that are not large
        self.counting = threading.Lock()
        self.receiving = 0  # calls, of whose messages gRPC may hold any part
        self.watching = threading.Lock()
        self.stops = False
        self._cancel_at = inf
        self.lingering: list[Call] = []
        self.closing = False
        self._together = 1  # messages that were answered together last time
        self._awake_until = 0.0
        self._singly = 0  # messages that were answered alone
        self._stopped = threading.Event()
        self._credentials: list[grpc.ServerCredentials] = []
        self._core = core_server(options)
        self._queue = completion_queue()
        self._core.register_completion_queue(self._queue)
        self._methods = list(methods)
        at_work = {method.limit for method in self._methods if method.recorded}
        self._most_receive = _MOST_RECEIVE + sum(limit.most for limit in at_work)
        self._too_many_receive = Refusals(self._most_receive, "calls send a message")
        self._too_many_open = Refusals(_MOST_OPEN, "calls are open")
        self._too_much_small = Refusals(_MOST_SMALL, "bytes of metadata and answers are held")
        for method in self._methods:
            self._core.register_method(method.path)
        self._threads = [
            threading.Thread(target=run, name=name, daemon=True)
            for name, run in (
                ("call-lane", self._serve),
                ("large", partial(self._help, self.large)),
                ("very-large", partial(self._help, self.very_large)),
            )
        ]

    @property
    def in_flight(self) -> int:
        """How many recorded calls have come in, and have not ended with their answer sent."""
        return sum(call.method.recorded for call in list(self.open))

    def add_port(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        """Bind an address before the start; return its port, 0 where that fails."""
        if credentials:
            self._credentials.append(credentials)  # they are asked for new certificates
        return add_port(self._core, address, credentials)

    def start(self) -> None:
        """Take calls. No thread is started after this."""
        sys.setswitchinterval(_SWITCH_EVERY)
        self._core.start()
        for thread in self._threads:
            thread.start()
        for method in (*self._methods, UNKNOWN):
            self._request(partial(self._came, method), method)

    def stop(self, grace: float) -> threading.Event:
        """Take no more calls, cancel after so many seconds; return what is set once none is left.

        ``let_go`` sees to it. It can be asked again, with less grace.
        """
        if not self.stops:
            self.stops = True
            self._core.shutdown(self._queue, self._has_stopped)
        self._cancel_at = min(self._cancel_at, perf_counter() + grace)
        self.let_go()
        return self._stopped

    def _has_stopped(self, _event: Any) -> None:
        self._stopped.set()

    def close(self) -> None:
        """Have the threads end, once the server has stopped and what they are at is done."""
        self.closing = True
        for jobs in (self.large, self.very_large):
            jobs.put(None)
        for call in self.lingering:
            call.go_on()
        self.forget(None)

    def let_go(self) -> None:
        """End calls whose large answers can be taken for read, and all when the grace is over.

        Ask now and then while the server stops.
        """
        if perf_counter() >= self._cancel_at:
            self._core.cancel_all_calls()
        for call in list(self.lingering):
            if is_read(call.waits_since):
                self.lingering.remove(call)
                call.go_on()

    def answers_changed(self) -> None:
        """Tell those who watch."""
        for call in list(self.open):
            if isinstance(call, Watch):
                call.update()

    def make_room(self, size: int) -> None:
        """Count a message in memory; raises Overloaded where not even a slow reader gives way."""
        try:
            self.held.enter(size)
        except Overloaded as error:
            other = self._longest_waiting(lambda call: call.holds > 0)
            if not other:
                raise
            other.give_way(error)
            self.held.enter(size, force=True)

    def forget(self, call: Call | None) -> None:
        """Take a call for ended; with the last one of a stopped server ends the queue.

        Not sooner: a queue that was shut down aborts the process when a call still uses it.
        """
        self.open.pop(call, None)  # type: ignore[arg-type]
        if self.closing and not self.open:
            self._queue.shutdown()

    def _request(self, tag: Callable[[Any], None], method: Method) -> None:
        queue = self._queue
        try:
            if method is UNKNOWN:
                error = self._core.request_call(queue, queue, tag)
            else:
                error = self._core.request_registered_call(queue, queue, method.path, tag)
        except ValueError:
            return  # the server stops
        if error:
            raise LaneEnded(f"gRPC takes no more calls of {method.path}: error {error}")

    def _serve(self) -> None:
        """Take events; where one brought a message, see what else there is before answering.

        With one call after the other, each step found the processor's caches as gRPC, Python or
        the kernel had left them, and took up to three times as long: docs/performance.md.
        """
        while (event := self._next_event()).tag is not None:  # None: it was shut down
            self._go_on(event)
            del event  # or its call would be kept until the next one
            if self.gathered:
                self._gather()
                self._answer_gathered()
                self._awake_until = perf_counter() + _STAY_AWAKE
        self._core.destroy()

    def _next_event(self) -> Any:
        """Wait for an event. After an answer, do not sleep at once: to be woken takes as long.

        Whoever else wants the processor gets it meanwhile.
        """
        while perf_counter() < self._awake_until:
            event = self._queue.poll(_DO_NOT_WAIT)
            if event.tag is not None:
                return event
            os.sched_yield()
        return self._queue.poll()

    def _gather(self) -> None:
        """Take what has come besides.

        The core looks at one connection at a time, and mostly says only the next time what
        has come there. So it is asked again, the more often the more came last time. Where
        calls come one by one, that is in vain, and so it is tried now and then.
        """
        if self._together == 1:
            self._singly += 1
            if self._singly % _LOOK_EVERY:
                return
        until = perf_counter() + _HOLD_BACK
        asks = self._together + 1
        while len(self.gathered) < _TOGETHER and asks and perf_counter() < until:
            event = self._queue.poll(_DO_NOT_WAIT)
            if event.tag is None:
                asks -= 1
            else:
                self._go_on(event)
        self._together = len(self.gathered)

    def _go_on(self, event: Any) -> None:
        try:
            event.tag(event)
        except Exception:
            self._give_up(_core_of(event))

    def _answer_gathered(self) -> None:
        while self.gathered:
            answers = []
            until = perf_counter() + _HOLD_BACK
            while self.gathered and perf_counter() < until:
                call, wire = self.gathered.popleft()
                try:
                    answers.append((call, call.answer(wire)))
                except Exception:
                    self._give_up(call.core)
            for call, answer in answers:
                try:
                    call.send(answer)
                except Exception:
                    self._give_up(call.core)

    def _came(self, method: Method, event: Any) -> None:
        if not event.success:
            return  # the server stops
        self._request(event.tag, method)
        # the health of a server that has too many calls can still be asked for
        more = 1.0 if method.recorded else _FOR_HEALTH
        is_full, refusals = len(self.open) >= _MOST_OPEN * more, self._too_many_open
        if self.small > _MOST_SMALL * more:
            is_full, refusals = True, self._too_much_small
        call = KINDS[method.kind](self, method, event)
        self.open[call] = None
        if is_full:
            error = refusals.one()
            other = self._longest_waiting()
            (other or call).give_way(error)
            if not other:
                return
        call.begin()
        if self.receiving > self._most_receive:
            other = self._longest_waiting(lambda call: call.receives and not call.status)
            if other:
                other.give_way(self._too_many_receive.one())

    def _longest_waiting(self, kind: Callable[[Call], bool] = lambda _: True) -> Call | None:
        """Return the oldest call of a kind that has waited for its client for long.

        Not one that gave way before: its place is another's already. It ends without its status.
        """
        long_ago = perf_counter() - _PATIENCE
        for call in takewhile(lambda call: call.came < long_ago, list(self.open)):
            if 0 < call.waits_since < long_ago and kind(call):
                if not call.gives_way:
                    return call
                call.cut_off()
        return None

    def _give_up(self, core: Any) -> None:
        """End a call that could not be gone on with; ask while that is being handled."""
        logger.exception("unexpected error on the call lane")
        for call in list(self.open):
            if call.core is core:
                self.forget(call)
        core.cancel()

    def _help(self, jobs: Jobs) -> None:
        while job := jobs.get():
            call, wire = job
            try:
                call.send(call.answer(wire))
            except Exception:
                self._give_up(call.core)
            self.held.leave(len(wire))
            call.method.limit.leave()
            del job, call, wire  # or they would be kept until the next one


def _core_of(event: Any) -> Any:
    """Return gRPC's object for the call of an event."""
    step = getattr(event.tag, "__self__", None)
    return step.core if isinstance(step, Call) else event.call


class LaneEnded(BaseException):
    """The lane takes no more calls: what fails a thread ends the process, see process/worker.py."""
