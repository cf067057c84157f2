"""What surrounds each call, whichever way it came: its record, its span, its place among others."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import getrandbits
from typing import Any, Literal

import grpc

from ..telemetry.logs import name_of
from ..telemetry.stats import CallRecord
from ..telemetry.tracing import call_tracer
from .credentials import caller_of
from .errors import Overloaded
from .lingering import LARGE
from .service import OpenCall

__all__ = ["Calls", "Limit", "Method", "Refusals"]

logger = logging.getLogger(__name__)


class Refusals:
    """What is said of calls beyond a limit: to each of them, and in the log. Threads share it."""

    _LINE_EVERY = 1.0  # seconds

    def __init__(self, most: int, of: str) -> None:
        self._most, self._of = most, of
        self._lock = threading.Lock()
        self._refused = 0
        self._next_line = 0.0

    def one(self) -> Overloaded:
        """Return what one more call ends with; of those of a second, the log has one line."""
        with self._lock:
            self._refused += 1
            line_due = time.monotonic() >= self._next_line
            if line_due:
                refused, self._refused = self._refused, 0
                self._next_line = time.monotonic() + self._LINE_EVERY
        error = Overloaded(self._most, self._of)
        if line_due:
            logger.warning("overload, %d calls refused: %s", refused, error)
        return error


class Limit:
    """How much may be in flight at a time, in calls or bytes. Threads share it."""

    def __init__(self, most: int, of: str) -> None:
        self.most = most
        self._refusals = Refusals(most, of)
        self._lock = threading.Lock()
        self._now = 0

    def enter(self, size: int = 1, *, force: bool = False) -> None:
        """Count so much more; raises Overloaded if that is too much, unless it is forced."""
        with self._lock:
            if force or self._now + size <= self.most:
                self._now += size
                return
        raise self._refusals.one()

    def leave(self, size: int = 1) -> None:
        """Count it no more."""
        with self._lock:
            self._now -= size


@dataclass(frozen=True, eq=False, slots=True)
class Method:
    """A method of a service, on wire forms, however its calls come in."""

    service: str
    name: str
    answer: Callable[[bytes, OpenCall], bytes]
    limit: Limit
    kind: Literal["unary", "stream", "watch", "unknown"] = "unary"
    """What is answered: one message with one; each message of a stream with one; one message, and
    again whenever its answer has changed; none, as there is no such method."""
    is_light: Callable[[bytes], bool] = lambda wire: len(wire) <= LARGE
    """Whether answering a message takes few milliseconds, so that others may wait for it."""
    recorded: bool = False
    """Whether its calls stand in the log, in metrics and traces, and delay a shutdown."""

    @property
    def path(self) -> str:
        """Its name in HTTP/2."""
        return f"/{self.service}/{self.name}"


class Calls:
    """Begins and ends the records of calls."""

    def __init__(self, *, enter: Callable[[CallRecord], None], named_callers: bool) -> None:
        self._tracer = call_tracer()
        self._enter = enter
        self._named_callers = named_callers
        self._log_lines = logging.getLogger().isEnabledFor(logging.INFO)  # else nobody asks
        self._named_calls = self._log_lines or self._tracer is not None

    def begin(
        self,
        method: str,
        metadata: Iterable[tuple[str, str | bytes]],
        peer: Callable[[], str],
        auth_context: Callable[[], Mapping[str, Any]],
    ) -> CallRecord:
        """Return the record of a call that came in."""
        call = CallRecord(method, began=time.perf_counter())
        for key, value in metadata:
            if key == "x-request-id":
                call.request_id = name_of(str(value))
        if self._named_calls:
            call.request_id = call.request_id or f"{getrandbits(64):016x}"
        if self._log_lines:
            call.peer = peer()
        if self._named_callers:
            call.caller = caller_of(auth_context())
        if self._tracer:
            call.span = self._tracer.begin(method, metadata)
        return call

    def close(self) -> None:
        """Hand on what is known of calls that have ended."""
        if self._tracer:
            self._tracer.flush()

    def end(self, call: CallRecord, code: grpc.StatusCode) -> None:
        """Enter it into the accounts."""
        call.ended = time.time()
        call.seconds = call.seconds or time.perf_counter() - call.began
        if code is not grpc.StatusCode.OK:
            call.code = code.name
        self._enter(call)
        if self._tracer and call.span:
            self._tracer.end(call.span, code, call.request_id)
