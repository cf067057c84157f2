"""What surrounds each call, whichever way it came: its record, its span, its place among others."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import getrandbits
from typing import Any, Literal

import grpc

from ..telemetry.logs import LogFormat, call_lines
from ..telemetry.stats import CallRecord, CallStats
from ..telemetry.tracing import call_tracer
from .errors import Overloaded
from .service import OpenCall

__all__ = ["Accounts", "Calls", "Limit", "Method"]

logger = logging.getLogger(__name__)


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


class Limit:
    """How much may be in flight at a time, in calls or bytes. Threads share it."""

    _LINE_EVERY = 1.0  # seconds, of the lines about what is refused

    def __init__(self, most: int, of: str) -> None:
        self.most = most
        self._of = of
        self._lock = threading.Lock()
        self._now = 0
        self._refused = 0
        self._next_line = 0.0

    def enter(self, size: int = 1, *, force: bool = False) -> None:
        """Count so much more; raises Overloaded if that is too much, unless it is forced."""
        with self._lock:
            if force or self._now + size <= self.most:
                self._now += size
                return
            self._refused += 1
            line_due = time.monotonic() >= self._next_line
            if line_due:
                refused, self._refused = self._refused, 0
                self._next_line = time.monotonic() + self._LINE_EVERY
        error = Overloaded(self.most, self._of)
        if line_due:
            logger.warning("overload, %d calls refused: %s", refused, error)
        raise error

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
    kind: Literal["unary", "stream", "watch"] = "unary"
    """It answers one message with one; each message of a stream with one; or one message, and
    again whenever the answer to it has changed."""
    recorded: bool = False
    """Whether its calls stand in the log, in metrics and traces, and hold up a drain."""

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
                call.request_id = _one_word(str(value))
        if self._named_calls:
            call.request_id = call.request_id or f"{getrandbits(64):016x}"
        if self._log_lines:
            call.peer = peer()
        if self._named_callers:
            names = auth_context().get("x509_common_name") or [b""]
            call.caller = bytes(names[0]).decode(errors="replace")
        if self._tracer:
            call.span = self._tracer.begin(method, metadata)
        return call

    def end(self, call: CallRecord, code: grpc.StatusCode) -> None:
        """Enter it into the accounts."""
        call.ended = time.time()
        call.seconds = call.seconds or time.perf_counter() - call.began
        if code is not grpc.StatusCode.OK:
            call.code = code.name
        self._enter(call)
        if self._tracer and call.span:
            self._tracer.end(call.span, code, call.request_id)


def _one_word(request_id: str) -> str:
    """Return what a caller names its call, so that it cannot pass for other parts of a log line."""
    return "_".join(request_id.split())[:128]
