"""The counts of all workers as Prometheus metrics."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from .stats import CallStats, Distribution

__all__ = ["Metrics"]


class Metrics(Collector):
    """What the workers have counted, as Prometheus wants it. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stats = CallStats()
        self._in_flight: dict[int, int] = {}
        self._restarts = 0

    def add(self, worker: int, stats: CallStats, in_flight: int) -> None:
        """Add what a worker has counted since it last said so."""
        with self._lock:
            self._stats.add(stats)
            self._in_flight[worker] = in_flight

    def worker_died(self, worker: int) -> None:
        """Count a worker that will be started again."""
        with self._lock:
            self._in_flight.pop(worker, None)
            self._restarts += 1

    def log_lines_dropped(self, lines: int) -> None:
        """Count lines of a supervisor's own log, and of those that it passes on."""
        with self._lock:
            self._stats.log_lines_dropped += lines

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; names and units follow Prometheus' conventions."""
        with self._lock:
            stats = self._stats
            calls = CounterMetricFamily(
                "specgen_calls", "Calls that have ended.", labels=["method", "code"]
            )
            for method, codes in stats.calls.items():
                for code, count in codes.items():
                    calls.add_metric([method, code], count)
            yield calls
            for name, help_, by_method in (
                ("specgen_call_duration_seconds", "Time in the server.", stats.seconds),
                ("specgen_request_bytes", "Size of requests, per call.", stats.request_bytes),
                ("specgen_response_bytes", "Size of responses, per call.", stats.response_bytes),
            ):
                family = HistogramMetricFamily(name, help_, labels=["method"])
                for method, distribution in by_method.items():
                    _add_distribution(family, [method], distribution)
                yield family
            inputs = HistogramMetricFamily(
                "specgen_request_inputs", "Inputs of a build.", labels=[]
            )
            _add_distribution(inputs, [], stats.inputs)
            yield inputs
            yield GaugeMetricFamily(
                "specgen_calls_in_flight", "Calls being answered.", sum(self._in_flight.values())
            )
            yield GaugeMetricFamily("specgen_workers", "Workers serving.", len(self._in_flight))
            yield CounterMetricFamily(
                "specgen_worker_restarts", "Workers that died and were replaced.", self._restarts
            )
            yield CounterMetricFamily(
                "specgen_log_lines_dropped",
                "Log lines that could not be written.",
                stats.log_lines_dropped,
            )


def _add_distribution(
    family: HistogramMetricFamily, labels: list[str], distribution: Distribution
) -> None:
    buckets = []
    up_to = 0
    for bound, count in zip((*distribution.bounds, float("inf")), distribution.counts):
        up_to += count
        buckets.append((_bound(bound), up_to))
    family.add_metric(labels, buckets, distribution.total)


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else repr(float(bound))
