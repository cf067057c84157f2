"""Prometheus metrics of all workers, served over HTTP at one address."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from ..addresses import AddressError
from .stats import CallStats, Distribution

__all__ = ["Metrics", "serve_metrics"]


class Metrics(Collector):
    """What the workers have counted, as Prometheus wants it. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stats = CallStats()
        self._in_flight: dict[int, int] = {}
        self._on_lane: dict[int, bool] = {}
        self._restarts = 0

    def add(self, worker: int, stats: CallStats, in_flight: int, on_lane: bool) -> None:
        """Add what a worker has counted since it last said so."""
        with self._lock:
            self._stats.add(stats)
            self._in_flight[worker] = in_flight
            self._on_lane[worker] = on_lane

    def worker_died(self, worker: int) -> None:
        """Count a worker that will be started again."""
        with self._lock:
            self._in_flight.pop(worker, None)
            self._on_lane.pop(worker, None)
            self._restarts += 1

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
            yield GaugeMetricFamily(
                "specgen_call_lane",
                "Workers whose calls come in by the call lane.",
                sum(self._on_lane.values()),
            )
            yield GaugeMetricFamily("specgen_workers", "Workers serving.", len(self._in_flight))
            yield CounterMetricFamily(
                "specgen_worker_restarts", "Workers that died and were replaced.", self._restarts
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


def serve_metrics(address: str, metrics: Metrics) -> Callable[[], None]:
    """Serve ``/metrics`` at HOST:PORT until the returned function is called.

    Raises:
        AddressError: it cannot be listened on.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 0xFFFF:
        raise AddressError(f"cannot serve metrics at {address}: it is not HOST:PORT")
    registry = CollectorRegistry()
    registry.register(metrics)
    try:
        server, _ = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise AddressError(f"cannot serve metrics at {address}: {error.strerror}") from None
    return server.shutdown
