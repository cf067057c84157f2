"""Counting calls: plain numbers in each worker, added up where metrics are served.

prometheus-client's multiprocess mode writes to a memory-mapped file at each call, and
grpcio-observability measures every call in and out of gRPC's core; docs/operations.md has
what each costs. Here a call costs one append; a thread adds up what has come together a few
times a second.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

import msgspec

__all__ = [
    "BYTES",
    "INPUTS",
    "SECONDS",
    "CallRecord",
    "CallStats",
    "Distribution",
]

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
INPUTS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
BYTES = (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 23, 1 << 26)


class CallRecord(msgspec.Struct, gc=False):
    """One call: all that is known of it, once it has ended."""

    method: str
    peer: str = ""
    caller: str = ""
    """The name in the caller's certificate, with mTLS."""
    request_id: str = ""
    """Its caller's name for it, or ours, where it is logged or traced."""
    span: Any = None
    """What traces it, if anything does."""
    began: float = 0.0
    """By the clock of ``time.perf_counter``."""
    code: str = "OK"
    field: str = ""
    """The first field of a request that was refused."""
    seconds: float = 0.0
    ended: float = 0.0
    """Seconds since the epoch."""
    request_bytes: int = 0
    response_bytes: int = 0
    builds: list[int] = []
    """How many inputs each of its builds had."""


class Distribution(msgspec.Struct):
    """A histogram: how many observations up to each bound, not added up, and their sum."""

    bounds: tuple[float, ...]
    counts: list[int]
    total: float = 0.0

    @classmethod
    def over(cls, bounds: tuple[float, ...]) -> Distribution:
        """Return an empty one; what lies above the last bound has a place of its own."""
        return cls(bounds, [0] * (len(bounds) + 1))

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, other: Distribution) -> None:
        """Count all of another's."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts)]
        self.total += other.total


class CallStats(msgspec.Struct):
    """What is known of the calls of a worker, or of several."""

    calls: dict[str, dict[str, int]] = {}
    """By method and code."""
    seconds: dict[str, Distribution] = {}
    request_bytes: dict[str, Distribution] = {}
    response_bytes: dict[str, Distribution] = {}
    inputs: Distribution = msgspec.field(default_factory=lambda: Distribution.over(INPUTS))
    log_lines_dropped: int = 0

    def record(self, records: Iterable[CallRecord]) -> None:
        """Count calls."""
        for record in records:
            codes = self.calls.setdefault(record.method, {})
            codes[record.code] = codes.get(record.code, 0) + 1
            for distributions, bounds, value in (
                (self.seconds, SECONDS, record.seconds),
                (self.request_bytes, BYTES, record.request_bytes),
                (self.response_bytes, BYTES, record.response_bytes),
            ):
                distribution = distributions.get(record.method)
                if distribution is None:
                    distribution = distributions[record.method] = Distribution.over(bounds)
                distribution.observe(value)
            for inputs in record.builds:
                self.inputs.observe(inputs)

    def add(self, other: CallStats) -> None:
        """Count all that another has counted."""
        for method, codes in other.calls.items():
            ours = self.calls.setdefault(method, {})
            for code, count in codes.items():
                ours[code] = ours.get(code, 0) + count
        for mine, theirs in (
            (self.seconds, other.seconds),
            (self.request_bytes, other.request_bytes),
            (self.response_bytes, other.response_bytes),
        ):
            for method, distribution in theirs.items():
                mine.setdefault(method, Distribution.over(distribution.bounds)).add(distribution)
        self.inputs.add(other.inputs)
        self.log_lines_dropped += other.log_lines_dropped
