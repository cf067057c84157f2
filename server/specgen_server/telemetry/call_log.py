"""The log of calls: adds up their records, and writes a line for each."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable

from .logs import LogFormat, call_lines
from .stats import CallRecord, CallStats

__all__ = ["CallLog"]


class CallLog:
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
        self._thread = threading.Thread(target=self._keep, name="call-log", daemon=True)
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
