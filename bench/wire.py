"""Over the wire: parts (b), (c), (d) and (f) of the table."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

import corpus
from load import CPUS, METHOD, SERVER_CPUS, WARM_UP, WIDE, Load, Target, framed, load, uri
from servers import Running, free_port, processor_time, resident
from specgen.v1.specgen_pb2 import GenerateSpecsRequest, GenerateSpecsResponse, SpecJSON
from specgen_core import SpecOptions
from specgen_core.answer import generate
from tvix.build.protos.build_pb2 import BuildRequest

__all__ = ["bulk_rows", "load_rows", "process_rows", "starvation_rows", "worker_rows"]

BULK_METHOD = "specgen.v1.SpecService/GenerateSpecs"
HERE = Path(__file__).parent
BULK_STREAMS = 4
IN_FLIGHT = (1, 16, 64)


def check(target: Target, wires: Sequence[bytes]) -> None:
    """See that a target answers with the specs; h2load only counts."""
    with grpc.insecure_channel(target.address) as channel:
        call: Any = channel.unary_unary(f"/{target.method}")
        for wire in wires:
            answer = SpecJSON.FromString(call(wire, timeout=20, wait_for_ready=True))
            if _comparable(answer.json) != _comparable(generate(wire, SpecOptions()).json):
                raise RuntimeError(f"{target.name} answers with another spec")


def _comparable(spec: str) -> Any:
    """Return a spec parsed, its capability lists as sets: those of a peer may have any order."""
    parsed = json.loads(spec)
    capabilities = parsed["process"]["capabilities"]
    capabilities.update((name, set(each)) for name, each in capabilities.items())
    return parsed


@contextmanager
def pinned(
    *flags: str, listen: str | None = None, cpus: set[int] | None = None
) -> Iterator[Running]:
    """Yield a server of ours on the server's core, or others."""
    with _on(cpus or SERVER_CPUS):
        server = Running("--grace", "2", *flags, listen=listen)
    try:
        server.wait_until_serving()
        yield server
    finally:
        server.stop()


@contextmanager
def noop(listen: str, name: str, *flags: str) -> Iterator[Target]:
    """Yield a no-op server, on the server's core."""
    command = [sys.executable, str(HERE / "noop_server.py"), "--listen", listen, *flags]
    with _on(SERVER_CPUS):
        process = subprocess.Popen(command)
    try:
        yield Target(name, listen)
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def _on(cpus: set[int]) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _medians(rounds: list[Load]) -> tuple[float, float, float]:
    return (
        statistics.median(r.calls_per_second for r in rounds),
        statistics.median(r.percentile(0.5) for r in rounds),
        statistics.median(r.percentile(0.99) for r in rounds),
    )


def _ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """Return the median of the ratios within each round: what slows a whole round is in both."""
    return statistics.median(one / other for one, other in zip(of, to))


def _compared(
    targets: Sequence[Target],
    bodies: list[bytes],
    *,
    in_flight: int,
    rounds: int,
    seconds: float,
    load: Callable[..., Load] = load,
) -> dict[str, list[Load]]:
    """Return what came of each round, by the target's name; they take turns at being first."""
    results: dict[str, list[Load]] = {target.name: [] for target in targets}
    width = min(in_flight, 16)
    for turn in range(rounds):
        chosen = [bodies[(turn * width + i) % len(bodies)] for i in range(width)]
        for target in targets if turn % 2 else reversed(targets):
            results[target.name].append(load(target, chosen, in_flight=in_flight, seconds=seconds))
    return results


def load_rows(rounds: int, seconds: float, peer: Target | None) -> list[tuple[str, ...]]:
    """(b): calls a second and latencies, against the no-op server on the same core."""
    sized = corpus.sized(60, 100)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for transport in ("tcp", "unix"):
            listen = [
                f"127.0.0.1:{free_port()}" if transport == "tcp" else f"unix://{directory}/{i}"
                for i in range(4)
            ]
            with (
                pinned("--workers", "1", listen=listen[0]) as ours,
                pinned("--workers", "1", "--no-call-lane", listen=listen[1]) as public,
                noop(listen[2], "no-op") as floor,
                noop(listen[3], "no-op, lane", "--call-lane") as lane_floor,
            ):
                targets = [
                    *(Target("ours", ours.address), Target("ours, public way", public.address)),
                    *(floor, lane_floor),
                ]
                if peer and transport == "tcp":
                    targets.append(peer)
                for target in targets:
                    check(target, [*sized[:3], *corpus.closures()[:3]])
                for name, wires in (("60 inputs", sized), ("real closures", corpus.closures())):
                    bodies = [framed(wire) for wire in wires]
                    for in_flight in IN_FLIGHT:
                        results = _compared(
                            targets, bodies, in_flight=in_flight, rounds=rounds, seconds=seconds
                        )
                        for target in targets:
                            rows.append(_row(transport, name, in_flight, target.name, results))
    return rows


def _row(
    transport: str, name: str, in_flight: int, target: str, results: dict[str, list[Load]]
) -> tuple[str, ...]:
    loads, floor = results[target], results["no-op"]
    calls, p50, p99 = _medians(loads)
    return (
        transport,
        name,
        str(in_flight),
        target,
        f"{calls:.0f}",
        f"{p50:.2f}",
        f"{p99:.2f}",
        f"{_ratio(_rates(loads), _rates(floor)):.2f}",
        f"{_ratio([r.percentile(0.5) for r in loads], [r.percentile(0.5) for r in floor]):.2f}",
    )


def _rates(loads: list[Load]) -> list[float]:
    return [load.calls_per_second for load in loads]


def worker_rows(rounds: int, seconds: float) -> list[tuple[str, ...]]:
    """(b): two workers against one, on all cores, which the load then shares.

    So besides calls a second it says what a call takes of the processors, in the server and in
    the load; of that follows how many calls so many workers could answer with a core for each.
    """
    bodies = [framed(wire) for wire in corpus.sized(60, 100)]
    every = set(CPUS)
    with (
        pinned("--workers", "1", cpus=every) as one,
        pinned("--workers", "2", cpus=every) as two,
    ):
        servers = {"one worker": one, "two workers": two}
        targets = [Target(name, server.address) for name, server in servers.items()]
        took: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
        load_took: defaultdict[tuple[str, int], list[float]] = defaultdict(list)

        def loaded(target: Target, bodies: list[bytes], *, in_flight: int, seconds: float) -> Load:
            pid = servers[target.name].process.pid
            server, ended = processor_time(pid), _of_children()
            result = load(target, bodies, in_flight=in_flight, seconds=seconds)
            calls = result.calls_per_second * (seconds + WARM_UP)
            took[target.name, in_flight].append((processor_time(pid) - server) / calls)
            load_took[target.name, in_flight].append((_of_children() - ended) / calls)
            return result

        rows: list[tuple[str, ...]] = []
        for in_flight in IN_FLIGHT:
            results = _compared(
                targets, bodies, in_flight=in_flight, rounds=rounds, seconds=seconds, load=loaded
            )
            one_worker = _rates(results["one worker"])
            for workers, (name, loads) in enumerate(results.items(), start=1):
                calls, p50, p99 = _medians(loads)
                figures = (
                    *(f"{calls:.0f}", f"{p50:.2f}", f"{p99:.2f}"),
                    f"{_ratio(_rates(loads), one_worker):.2f}",
                    f"{statistics.median(took[name, in_flight]) * 1e6:.0f}",
                    f"{statistics.median(load_took[name, in_flight]) * 1e6:.0f}",
                    f"{workers * _ratio(took['one worker', in_flight], took[name, in_flight]):.2f}",
                )
                rows.append((str(in_flight), name, *figures))
    return rows


def _of_children() -> float:
    """Return the seconds of processors that ended programs took, which is the load."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def bulk_rows(rounds: int, seconds: float) -> list[tuple[str, ...]]:
    """(c): specs a second through GenerateSpecs, by builds in a message, four streams at a time."""
    builds = [BuildRequest.FromString(wire) for wire in corpus.sized(60, 128)]
    bodies = {}
    for chunk in (1, 16, 64):
        messages = (
            GenerateSpecsRequest(requests=builds[i : i + chunk])
            for i in range(0, len(builds), chunk)
        )
        bodies[f"chunks of {chunk}"] = b"".join(framed(m.SerializeToString()) for m in messages)
    single = [framed(build.SerializeToString()) for build in builds]
    rates: dict[str, list[float]] = {"single calls": [], **{name: [] for name in bodies}}
    with pinned("--workers", "1") as server:
        _check_bulk(server.address, builds)
        bulk = Target("bulk", server.address, BULK_METHOD)
        for turn in range(rounds):
            chosen = [single[(turn * 16 + i) % len(single)] for i in range(16)]
            calls = load(Target("ours", server.address), chosen, in_flight=16, seconds=seconds)
            rates["single calls"].append(calls.calls_per_second)
            for name, body in bodies.items():
                streams = load(bulk, [body] * BULK_STREAMS, in_flight=BULK_STREAMS, seconds=seconds)
                rates[name].append(streams.calls_per_second * len(builds))
    single_calls = rates["single calls"]
    return [
        (name, f"{statistics.median(of):.0f}", f"{_ratio(of, single_calls):.2f}")
        for name, of in rates.items()
    ]


def _check_bulk(address: str, builds: list[BuildRequest]) -> None:
    with grpc.insecure_channel(address) as channel:
        call: Any = channel.stream_stream(
            f"/{BULK_METHOD}",
            request_serializer=GenerateSpecsRequest.SerializeToString,
            response_deserializer=GenerateSpecsResponse.FromString,
        )
        (answer,) = call(iter([GenerateSpecsRequest(requests=builds[:5])]), timeout=20)
    for build, result in zip(builds, answer.results):
        if result.spec.json != generate(build, SpecOptions()).json:
            raise RuntimeError("the bulk call answers with another spec")


def process_rows(times: int) -> list[tuple[str, ...]]:
    """(d): from start to SERVING, and the memory of a worker."""
    seconds, fresh, full = [], [], []
    for _ in range(times):
        began = time.monotonic()
        server = Running("--workers", "1")
        try:
            server.wait_until_serving()
            seconds.append(time.monotonic() - began)
            fresh.append(resident(server.process.pid))
            with grpc.insecure_channel(server.address) as channel:
                call: Any = channel.unary_unary(f"/{METHOD}")
                for wire in corpus.closures():
                    call(wire, timeout=20)
            full.append(resident(server.process.pid))
        finally:
            server.stop()
    return [
        ("start to SERVING", f"{statistics.median(seconds):.2f} s"),
        ("resident, SERVING", f"{statistics.median(fresh) / 2**20:.1f} MiB"),
        ("resident, after 120 real closures", f"{statistics.median(full) / 2**20:.1f} MiB"),
    ]


def starvation_rows(rounds: int, seconds: float) -> list[tuple[str, ...]]:
    """(f): calls with 60 inputs, while calls with 10000 run on another connection."""
    small = [framed(wire) for wire in corpus.sized(60, 100)]
    large = [framed(wire) for wire in corpus.sized(10_000, 1)]
    rows = []
    for workers in ("1", "2"):
        alone, beside = [], []
        with pinned("--workers", workers, cpus=set(CPUS)) as server:
            target = Target("ours", server.address)
            for turn in range(rounds):
                chosen = [small[(turn * 4 + i) % len(small)] for i in range(4)]
                alone.append(load(target, chosen, in_flight=4, seconds=seconds))
                with _large_calls(target, large[0], seconds + 2):
                    beside.append(load(target, chosen, in_flight=4, seconds=seconds))
        p99 = [one.percentile(0.99) for one in alone]
        loaded = [one.percentile(0.99) for one in beside]
        medians = (f"{statistics.median(times):.2f}" for times in (p99, loaded))
        rows.append((workers, *medians, f"{_ratio(loaded, p99):.1f}"))
    return rows


@contextmanager
def _large_calls(target: Target, body: bytes, seconds: float) -> Iterator[None]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        process = subprocess.Popen(
            [
                *(
                    "h2load",
                    "--duration",
                    f"{int(seconds * 1000)}ms",
                    "-c",
                    "1",
                    "-m",
                    "1",
                    *WIDE,
                    "-d",
                    file.name,
                ),
                *("-H", "te: trailers", "-H", "content-type: application/grpc"),
                *uri(target),
            ],
            stdout=subprocess.DEVNULL,
        )
        time.sleep(0.5)
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)
