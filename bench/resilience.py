"""What callers notice of restarts and dying workers: the figures of docs/operations.md.

python bench/resilience.py restarts   three servers, each restarted in turn, under load
python bench/resilience.py kills      one of two workers killed every second, under load
python bench/resilience.py soak       resident memory under ten minutes of mixed load
python bench/resilience.py start      time from start to SERVING, memory of a worker
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

from servers import Running, children, resident, running_server
from specgen_client import SpecClient, SpecgenError
from tvix.build.protos.build_pb2 import BuildRequest

BULK = Path(__file__).parent.parent / "tests" / "golden" / "real_bulk.jsonl.gz"


def real_requests() -> list[BuildRequest]:
    """Return the 160 real build requests of the golden cases."""
    with gzip.open(BULK) as lines:
        return [
            BuildRequest.FromString(base64.b64decode(json.loads(line)["request_base64"]))
            for line in lines
        ]


class Load:
    """Callers in threads, each asking for one real build after the other."""

    def __init__(self, target: str, *, callers: int) -> None:
        self._target = target
        self._requests = real_requests()
        self._stop = threading.Event()
        self.calls = 0
        self.failures: Counter[str] = Counter()
        self._threads = [
            threading.Thread(target=self._call, args=(number,)) for number in range(callers)
        ]

    def _call(self, number: int) -> None:
        with SpecClient(self._target, timeout=20) as client:
            turn = number
            while not self._stop.is_set():
                try:
                    client.generate(self._requests[turn % len(self._requests)])
                except SpecgenError as error:
                    self.failures[str(error)[:100]] += 1
                self.calls += 1
                turn += 7

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def restarts(rounds: int) -> bool:
    """Restart three servers in turn."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(running_server("--workers", "1", "--drain-delay", "0.5"))
            for _ in range(3)
        ]
        target = "ipv4:" + ",".join(server.address for server in servers)
        codes = Counter[int]()
        with Load(target, callers=4) as load:
            for _ in range(rounds):
                for server in servers:
                    time.sleep(0.5)
                    codes[server.restart()] += 1
    print(f"restarts: {sum(codes.values())}, exit codes {dict(codes)}")
    print(f"calls: {load.calls}, failed: {sum(load.failures.values())} {dict(load.failures)}")
    return not load.failures and set(codes) == {0}


def kills(seconds: int) -> bool:
    """Kill a worker every second, where both serve."""
    killed = 0
    with running_server("--workers", "2") as server, Load(server.address, callers=4) as load:
        port = int(server.address.rpartition(":")[2])
        for turn in range(seconds):
            time.sleep(1)
            until = time.monotonic() + 20  # on a busy machine a worker starts slowly
            workers: list[int] = []
            while len(workers) < 2 and time.monotonic() < until:
                time.sleep(0.02)
                workers = [pid for pid in children(server.process.pid) if listens(pid, port)]
            if len(workers) == 2:
                send_kill(workers[turn % 2])
                killed += 1
    print(f"workers killed: {killed}")
    print(f"calls: {load.calls}, lost: {sum(load.failures.values())} {dict(load.failures)}")
    return not load.failures and killed > seconds // 2


def soak(minutes: float) -> bool:
    """Watch the memory of two workers under mixed load."""
    with (
        running_server("--workers", "2") as server,
        Load(server.address, callers=2) as load,
        garbage(server.address) as sent,
    ):
        samples = []
        ends = time.monotonic() + minutes * 60
        while time.monotonic() < ends:
            time.sleep(5)
            samples.append(sum(map(resident, children(server.process.pid))))
    after_first = samples[min(12, len(samples) // 2) - 1]
    growth = statistics.median(samples[-3:]) / after_first - 1
    print(f"calls: {load.calls}, garbage: {sent()}, failed: {sum(load.failures.values())}")
    print(
        f"resident memory of 2 workers: {after_first / 2**20:.1f} MiB after the first minute, "
        f"{samples[-1] / 2**20:.1f} MiB at the end: {growth:+.1%}"
    )
    return not load.failures and growth < 0.05


def start(times: int) -> bool:
    """Measure starts of one worker, and what it holds once it has answered."""
    seconds, memory = [], []
    requests = real_requests()
    for _ in range(times):
        began = time.monotonic()
        server = Running("--workers", "1")
        try:
            server.wait_until_serving()
            seconds.append(time.monotonic() - began)
            with SpecClient(server.address) as client:
                client.generate(requests[0])
            memory.append(resident(server.process.pid))
        finally:
            server.stop()
    print(
        f"start to SERVING: {statistics.median(seconds):.2f} s median of {times}, "
        f"{statistics.median(memory) / 2**20:.1f} MiB resident"
    )
    return statistics.median(seconds) < 0.5 and statistics.median(memory) < 60 * 2**20


@contextmanager
def garbage(address: str) -> Iterator[Callable[[], int]]:
    """Send what is no request, on a connection of its own, until the end."""
    stop = threading.Event()
    sent = 0
    rng = random.Random(0)

    def send() -> None:
        nonlocal sent
        with grpc.insecure_channel(address) as channel:
            call: Any = channel.unary_unary("/specgen.v1.SpecService/GenerateSpec")
            while not stop.is_set():
                try:
                    call(rng.randbytes(rng.randrange(4000)), timeout=20)
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                        print(f"garbage got {error.code()}", file=sys.stderr)
                sent += 1
                time.sleep(0.002)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield lambda: sent
    finally:
        stop.set()
        thread.join()


def listens(pid: int, port: int) -> bool:
    """Whether a process of ours listens on the port."""
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path("/proc/net", table).read_text().splitlines()[1:]
    ]
    listening = {
        f"socket:[{row[9]}]"
        for row in rows
        if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port
    }
    with suppress(FileNotFoundError):  # it, or a file of it, is gone
        return any(str(fd.readlink()) in listening for fd in Path(f"/proc/{pid}/fd").iterdir())
    return False


def send_kill(pid: int) -> None:
    """End a process of ours at once."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def main() -> int:
    """Run what is asked for; exit code 1 where it does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["restarts", "kills", "soak", "start"])
    parser.add_argument("--rounds", type=int, default=5, help="of restarts; times to start")
    parser.add_argument("--seconds", type=int, default=30, help="of kills")
    parser.add_argument("--minutes", type=float, default=10, help="of soak")
    args = parser.parse_args()
    holds = {
        "restarts": lambda: restarts(args.rounds),
        "kills": lambda: kills(args.seconds),
        "soak": lambda: soak(args.minutes),
        "start": lambda: start(args.rounds),
    }[args.what]()
    print("holds" if holds else "DOES NOT HOLD")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
