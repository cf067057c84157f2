"""What it costs to count a call: prometheus-client's multiprocess mode against stats.py.

Prints microseconds of one core per call. Both count the same: a counter by method and code,
and histograms of duration, request bytes and response bytes by method.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import deque
from collections.abc import Callable

_FILES = tempfile.TemporaryDirectory()
os.environ["PROMETHEUS_MULTIPROC_DIR"] = _FILES.name  # read when prometheus_client is imported

from prometheus_client import Counter, Histogram  # noqa: E402

from specgen_server.telemetry.stats import BYTES, SECONDS, CallRecord, CallStats  # noqa: E402

CALLS = 50_000
BATCH = 1_000  # what comes together in 0.2 s at 5000 calls a second
METHOD, CODE = "GenerateSpec", "OK"
VALUES = (0.0007, 6_079, 11_942)


def _multiprocess() -> Callable[[], None]:
    calls = Counter("specgen_calls", "Calls.", ["method", "code"])
    histograms = [
        Histogram(name, name, ["method"], buckets=buckets)
        for name, buckets in (("seconds", SECONDS), ("request", BYTES), ("response", BYTES))
    ]

    def count() -> None:
        calls.labels(METHOD, CODE).inc()
        for histogram, value in zip(histograms, VALUES):
            histogram.labels(METHOD).observe(value)

    return count


def _record() -> CallRecord:
    seconds, request_bytes, response_bytes = VALUES
    return CallRecord(
        method=METHOD,
        peer="",
        caller="",
        request_id="",
        code=CODE,
        seconds=seconds,
        request_bytes=request_bytes,
        response_bytes=response_bytes,
    )


def _microseconds(run: Callable[[], object], calls: int) -> float:
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best / calls * 1e6


def main() -> None:
    """Measure and print."""
    count = _multiprocess()
    multiprocess = _microseconds(lambda: [count() for _ in range(CALLS)], CALLS)

    entered: deque[CallRecord] = deque()
    made = _microseconds(lambda: [entered.append(_record()) for _ in range(CALLS)], CALLS)
    records = [_record() for _ in range(BATCH)]
    added = _microseconds(lambda: CallStats().record(records), BATCH)

    print(f"prometheus-client, multiprocess  {multiprocess:5.2f} us, all of it within the call")
    print(f"stats.py, within the call        {made:5.2f} us: the record, which the log needs too")
    print(f"stats.py, afterwards             {added:5.2f} us, in a thread of its own")
    print(f"ratio                            {multiprocess / (made + added):5.1f}")


if __name__ == "__main__":
    main()
