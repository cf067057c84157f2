"""The server's side: starts the process, hands messages over, and ends it when it hangs."""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
from collections.abc import Callable
from math import inf
from time import clock_gettime, monotonic

import grpc
import msgspec

from specgen_core import SpecOptions

from ... import child_process
from ...memory import give_back_freed_memory
from ...settings import Settings
from ...telemetry.stats import CallRecord
from ..errors import CallerGone, Refused, SideProcessDied, Status
from .link import Job, Link, Mark, Reply

__all__ = ["VERY_LARGE", "SideProcess"]

logger = logging.getLogger(__name__)

VERY_LARGE = 512 * 1024
"""Bytes of a build request from which on it is answered in the side process."""

_LOOK_EVERY = 0.05  # seconds
_WINDOW = 0.5  # seconds, in which it must have had a share of a processor
_LEAST_SHARE = 0.2
_CPUCLOCK_SCHED = 2  # with a process' id, as clock_getcpuclockid(3) does, its clock
_PAUSE = 5.0  # seconds before another one is started
_LONGEST_PAUSE = 320.0  # where it does not get on, again and again
_LONGEST_START = 30.0  # seconds
_LONGEST_IN_VAIN = 5.0  # seconds for an answer that nobody waits for
_LONGEST_STILL = 1  # seconds in which nothing goes through the socket


class SideProcess:
    """Answers very large build requests; there is no process before the first of them.

    Where it is not ready, cannot be started, or does not get on for want of processors, they are
    answered in the thread that has them.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._start_at = 0.0
        self._pause = _PAUSE

    def is_ready(self) -> bool:
        """Return whether the process takes a message now; start it if there is none."""
        with self._lock:
            return self._ready() is not None

    def close(self) -> None:
        """End the process, once nobody waits for its answer."""
        self._start_at = inf
        if running := self._running:
            running.end()

    def answer(
        self, wire: bytes, options: SpecOptions, record: CallRecord, is_active: Callable[[], bool]
    ) -> bytes | None:
        """Return the answer to a build request; None where it is to be answered here.

        Raises:
            Refused: there is no answer.
            CallerGone: nobody waits for it any more, for long.
            SideProcessDied: perhaps because of this request, so do not answer it here either.
        """
        if len(wire) <= VERY_LARGE or not self._lock.acquire(blocking=False):
            return None  # it is busy: nobody waits for the answers of others
        try:
            running = self._ready()
            answer = running.answer(wire, options, record, is_active) if running else None
        except Refused:
            raise
        except CallerGone:
            self._end("nobody waits for its answer")
            raise
        except _DoesNotGetOn:
            self._end("it does not get on")
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            return None
        except BaseException:  # or what it still has to say would be the next one's answer
            self._end("it died")
            raise
        finally:
            self._lock.release()
        if answer is not None:
            self._pause = _PAUSE
        return answer

    def _ready(self) -> _Running | None:
        if self._running and self._running.has_died():
            self._end("it died")
        elif self._running and self._running.hangs():
            self._end("it does not start")
        if self._running is None and monotonic() >= self._start_at:
            try:
                self._running = _Running(self._settings)
            except (OSError, MemoryError) as error:
                logger.error("the side process cannot be started: %s", error)
                self._start_at = monotonic() + self._pause
        if self._start_at == inf:  # it was closed, maybe meanwhile
            self.close()
            return None
        return self._running if self._running and self._running.is_ready() else None

    def _end(self, why: str) -> None:
        running, self._running = self._running, None
        if running and self._start_at < inf:  # else it was closed
            self._start_at = monotonic() + self._pause
            how = running.end()
            logger.error("side process: %s (%s); another one in %g s", why, how, self._pause)


class _Running:
    """A process that was started. It inherits that stop signals are blocked."""

    def __init__(self, settings: Settings) -> None:
        ours, theirs = socket.socketpair()
        self._link = Link(ours, Reply, longest_still=_LONGEST_STILL)
        self._given_up, fd = Mark.new()
        fds = (theirs.fileno(), fd)
        try:
            with theirs:
                self._process = child_process.start(
                    *(__package__, *map(str, fds)), settings=settings, stdout=2, pass_fds=fds
                )
        except BaseException:
            self._link.close()
            raise
        finally:
            os.close(fd)
        self._replies = select.poll()
        self._replies.register(ours, select.POLLIN)
        self._number = 0
        self._is_ready = False
        self._is_late_from = monotonic() + _LONGEST_START

    def has_died(self) -> bool:
        """Return whether it has ended, or is about to: it says nothing unless asked."""
        speaks_up = self._is_ready and bool(self._replies.poll(0))
        return speaks_up or self._process.poll() is not None

    def hangs(self) -> bool:
        """Return whether it is still not ready, after a time that suffices for all."""
        return not self.is_ready() and monotonic() > self._is_late_from

    def is_ready(self) -> bool:
        """Return whether it has said that it takes messages."""
        if not self._is_ready and self._replies.poll(0):
            try:
                self._link.receive()
                self._is_ready = True
            except (EOFError, OSError, msgspec.MsgspecError):
                self._process.kill()  # it never will be
        return self._is_ready

    def answer(
        self, wire: bytes, options: SpecOptions, record: CallRecord, is_active: Callable[[], bool]
    ) -> bytes:
        """Return the answer to a build request; raises _DoesNotGetOn besides the others."""
        self._number += 1
        give_back_freed_memory(len(wire))  # the other process needs some for the message
        try:
            self._link.send(Job(self._number, options, record.request_id), wire)
            self._wait(is_active)
            reply, answer = self._link.receive()
            if reply.number != self._number:
                raise SideProcessDied
        except BlockingIOError:
            raise _DoesNotGetOn from None
        except (EOFError, OSError):
            raise SideProcessDied from None
        if reply.inputs is not None:
            record.note_build(reply.inputs)
        if reply.code != grpc.StatusCode.OK.name:
            raise Refused(Status(grpc.StatusCode[reply.code], reply.message, reply.violations))
        return answer

    def _wait(self, is_active: Callable[[], bool]) -> None:
        """Wait for a reply, as long as the process has its share of the processors' time."""
        looks, had = 0, self._processor_time()
        gone = 0
        while not self._replies.poll(_LOOK_EVERY * 1000):
            if not is_active():
                self._given_up.set(self._number)
                gone += 1
                if gone * _LOOK_EVERY >= _LONGEST_IN_VAIN:
                    raise CallerGone  # and others are answered in the worker meanwhile
            looks += 1
            if looks * _LOOK_EVERY >= _WINDOW:
                has = self._processor_time()
                if has - had < _WINDOW * _LEAST_SHARE:
                    raise _DoesNotGetOn
                looks, had = 0, has

    def _processor_time(self) -> float:
        """Return the seconds that it has had of processors."""
        return clock_gettime(~self._process.pid << 3 | _CPUCLOCK_SCHED)

    def end(self) -> str:
        """End it, if it has not ended; return how it did."""
        self._process.kill()  # whoever waits for a reply finds the other end closed
        code = self._process.wait()
        self._link.close()
        return child_process.how_it_ended(code)


class _DoesNotGetOn(Exception):
    """The process has too little of the processors' time, or is stopped."""
