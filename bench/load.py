"""Load from h2load (Debian: nghttp2-client), native and pinned to another core than the server.

One h2load repeats one request, so several run at once, each with a real request of its own.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "CPUS",
    "LOAD_CPUS",
    "METHOD",
    "SERVER_CPUS",
    "WARM_UP",
    "WIDE",
    "Load",
    "Target",
    "framed",
    "installed",
    "load",
    "uri",
]

METHOD = "specgen.v1.SpecService/GenerateSpec"
CPUS = sorted(os.sched_getaffinity(0))
SERVER_CPUS = {CPUS[0]}
LOAD_CPUS = set(CPUS[1:]) or set(CPUS)
WARM_UP = 0.3  # seconds of load before those that count
# HTTP/2 windows of 16 MiB: gRPC's clients grow theirs as needed, h2load's stay at 64 KiB
WIDE = ("-w", "24", "-W", "24")


@dataclass(frozen=True)
class Target:
    """What is measured: a server's address and its method."""

    name: str
    address: str
    method: str = METHOD


@dataclass(frozen=True)
class Load:
    """What came of some seconds of load."""

    calls_per_second: float
    milliseconds: list[float]

    def percentile(self, share: float) -> float:
        """Return the time within which this share of the calls was answered."""
        ordered = sorted(self.milliseconds)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def framed(message: bytes) -> bytes:
    """Return a message as gRPC sends it."""
    return b"\0" + struct.pack(">I", len(message)) + message


def load(target: Target, bodies: Sequence[bytes], *, in_flight: int, seconds: float) -> Load:
    """Keep so many calls in flight, spread over as many h2loads as there are bodies."""
    each = max(1, in_flight // len(bodies))
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        started = []
        for i, body in enumerate(bodies[:in_flight]):
            file = Path(directory, f"{i}.body")
            file.write_bytes(body)
            started.append(
                stack.enter_context(
                    subprocess.Popen(
                        [
                            *(
                                "h2load",
                                "--duration",
                                f"{int(seconds * 1000)}ms",
                                "--warm-up-time",
                                f"{int(WARM_UP * 1000)}ms",
                            ),
                            *("-c", "1", "-m", str(each), "-t", "1", *WIDE, "-d", str(file)),
                            *("--log-file", str(Path(directory, f"{i}.log"))),
                            *("-H", "te: trailers", "-H", "content-type: application/grpc"),
                            *uri(target),
                        ],
                        stdout=subprocess.DEVNULL,
                        preexec_fn=lambda: os.sched_setaffinity(0, LOAD_CPUS),
                    )
                )
            )
        for process in started:
            process.wait(seconds + 30)
        rows = [
            line.split("\t")
            for i in range(len(started))
            for line in Path(directory, f"{i}.log").read_text().splitlines()
        ]
    answered = [row for row in rows if row[1] == "200"]
    # those under way when the time is over are cut
    if not answered or len(rows) - len(answered) > in_flight:
        raise RuntimeError(
            f"{target.name}: {len(rows) - len(answered)} of {len(rows)} calls failed"
        )
    return Load(len(answered) / seconds, [int(row[2]) / 1000 for row in answered])


def uri(target: Target) -> list[str]:
    """Return the words that tell h2load where to call."""
    if target.address.startswith("unix:"):
        path = target.address.removeprefix("unix://")
        return ["--base-uri", f"unix:{path}", f"http://localhost/{target.method}"]
    return [f"http://{target.address}/{target.method}"]


def installed() -> bool:
    """Return whether there is an h2load to measure with."""
    return shutil.which("h2load") is not None
