"""The threads that answer calls."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, cast

__all__ = ["CallPool"]

logger = logging.getLogger(__name__)

_SPARE_THREADS = 8  # to refuse with, when all others are taken
_PATIENCE = 0.01  # seconds that no call gets a thread, until there are more of them
_CALM = 1.0  # seconds without that, after which they go


class CallPool(ThreadPoolExecutor):
    """Threads for calls, which counts those that came in and have not ended.

    A call holds a thread from when it comes in, even while its message is still under
    way. So there may be as many threads as calls in flight: those who stall hold none
    that others need. But many threads that take turns cost more than a few that stay at
    work, so there are just ``few`` until calls wait and none of these gets to them: 16
    calls in flight that do nothing take 91 us each, and with 16 threads 104.

    gRPC wants a ThreadPoolExecutor, so this is one, but none of that one's own threads
    ever start: it makes a Future of each call, with a lock and a condition, for a result
    that nobody asks for, and that takes a tenth of what such a call does.
    """

    def __init__(self, name: str, *, limit: int, few: int) -> None:
        super().__init__(1)
        self.limit = limit
        self.in_flight = 0
        self._name = name
        self._few = few
        self._most_threads = limit + _SPARE_THREADS
        self._threads_now = 0
        self._waiting: SimpleQueue[_Call] = SimpleQueue()
        self._counting = threading.Lock()
        self._taken = 0  # calls that got a thread, ever; without a lock, but it moves
        self._crowded = threading.Event()
        self._last_stall = 0.0
        threading.Thread(target=self._watch, name=f"{name}-watch", daemon=True).start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Take a call in."""
        call = _Call(fn, args, kwargs)
        with self._counting:
            self.in_flight += 1
            if self.in_flight > self._threads_now:
                if self._threads_now < self._few:
                    self._start_thread()
                else:
                    self._crowded.set()
        self._waiting.put(call)
        return cast("Future[Any]", call)

    def _start_thread(self) -> None:
        self._threads_now += 1
        threading.Thread(target=self._answer, name=self._name, daemon=True).start()

    def _answer(self) -> None:
        while True:
            call = self._waiting.get()
            self._taken += 1
            call.run()
            with self._counting:
                self.in_flight -= 1
            call.ended()
            del call  # or its message would be kept until the next comes in
            if self._threads_now > self._few and self._is_one_too_many():
                return

    def _is_one_too_many(self) -> bool:
        with self._counting:
            calm = time.monotonic() - self._last_stall > _CALM
            idle = self.in_flight < self._threads_now  # else a call counts on this thread
            too_many = calm and idle and self._threads_now > self._few
            self._threads_now -= too_many
            return too_many

    def _watch(self) -> None:
        """Start threads where calls wait and those that there are get to none of them."""
        while self._crowded.wait():
            taken = self._taken
            time.sleep(_PATIENCE)
            with self._counting:
                waiting = self.in_flight - self._threads_now
                if waiting <= 0:
                    self._crowded.clear()
                elif self._taken == taken:
                    self._last_stall = time.monotonic()
                    for _ in range(min(waiting, self._most_threads - self._threads_now)):
                        self._start_thread()


class _Call:
    """A call in a pool: as much of a Future as gRPC uses."""

    __slots__ = ("_args", "_callback", "_fn", "_kwargs", "_one_was_here")

    def __init__(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self._fn = fn
        self._args = args
        self._kwargs = kwargs
        self._callback: Callable[[Any], object] = _nothing
        self._one_was_here = threading.Lock()

    def run(self) -> None:
        try:
            self._fn(*self._args, **self._kwargs)
        except BaseException:
            logger.exception("unexpected error in a call")

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        self._callback = callback
        self.ended()

    def ended(self) -> None:
        """Call back, whichever comes second: the callback or the call's end."""
        if not self._one_was_here.acquire(blocking=False):
            self._callback(self)


def _nothing(_: object) -> None:
    pass
