"""From bytes to bytes, in this process: parts (a) and (e) of the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import corpus
from specgen_core import SpecOptions, diagnose, generate, make_spec, oci, read_request
from specgen_server.quick import Quick
from tvix.build.protos.build_pb2 import BuildRequest

__all__ = ["PARTS", "RATIOS", "growth", "make_spec_rows"]

OPTIONS = SpecOptions()
QUICK = Quick(generate)
Step = Callable[[bytes], object]
Measure = Callable[[], float]


def plain(wire: bytes) -> bytes:
    """Do all that a call does, the plain way."""
    return generate(wire, OPTIONS).SerializeToString()


def call(wire: bytes) -> bytes:
    """Do all that a call does, as the server does it."""
    return QUICK(wire, OPTIONS) or plain(wire)


def _seconds(step: Step, wires: Sequence[bytes]) -> float:
    began = time.perf_counter()
    for wire in wires:
        step(wire)
    return (time.perf_counter() - began) / len(wires)


def _cold(step: Step, wires: Sequence[bytes]) -> float:
    QUICK.forget()
    return _seconds(step, wires)


def _each_new(step: Step, wires: Sequence[bytes]) -> float:
    return statistics.mean(_cold(step, (wire,)) for wire in wires)


def _microseconds(steps: dict[str, Measure], rounds: int) -> dict[str, float]:
    """Return the median of each step, the steps taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, measure in steps.items():
            measure()  # the step before left the processor's caches to it
            taken[name].append(measure())
    return {name: statistics.median(times) * 1e6 for name, times in taken.items()}


def _steps(wires: Sequence[bytes]) -> dict[str, Measure]:
    read = {wire: read_request(wire) for wire in wires}
    specs = {wire: make_spec(one, OPTIONS) for wire, one in read.items()}
    warm: dict[str, Step] = {
        "parse": BuildRequest.FromString,
        "read": read_request,
        "build": lambda wire: make_spec(read[wire], OPTIONS),
        "encode": lambda wire: oci.encode(specs[wire]),
        "diagnose": lambda wire: diagnose(read[wire], OPTIONS, specs[wire]),
        "plain": plain,
        "warm": call,
    }
    return {
        **{name: partial(_seconds, step, wires) for name, step in warm.items()},
        "cold": partial(_cold, call, wires),
        "new": partial(_each_new, call, wires),
    }


PARTS = ("parse", "read", "build", "encode", "diagnose", "plain", "warm", "cold", "new")
RATIOS = ("plain", "warm", "cold", "new")


def make_spec_rows(rounds: int, quick: bool) -> list[tuple[str, ...]]:
    """Return a row for each kind of request: microseconds a request, and ratios to parse."""
    sets = {
        "8 inputs": corpus.sized(8, 100),
        "60 inputs": corpus.sized(60, 100),
        "1000 inputs": corpus.sized(1000, 20),
        "10000 inputs": corpus.sized(10000, 2 if quick else 6),
        "120 real closures": corpus.closures(),
        "160 real builds": corpus.bulk(),
    }
    rows = []
    for name, wires in sets.items():
        times = _microseconds(_steps(wires), rounds)
        rows.append(
            (
                name,
                *(f"{times[part]:.1f}" for part in PARTS),
                *(f"{times[part] / times['parse']:.1f}" for part in RATIOS),
            )
        )
    return rows


def growth(rounds: int, quick: bool) -> list[tuple[str, ...]]:
    """Return the time an input takes, by how many there are, and its ratio to that at 60."""
    sizes = (10, 60, 1000, 10_000) if quick else (10, 60, 1000, 10_000, 100_000)
    an_input = {}
    for size in sizes:
        wires = corpus.sized(size, max(1, min(100, 20_000 // size)))
        step: dict[str, Measure] = {"warm": partial(_seconds, call, wires)}
        an_input[size] = _microseconds(step, rounds)["warm"] / size
    return [
        (f"{size}", f"{taken:.3f}", f"{taken / an_input[60]:.2f}")
        for size, taken in an_input.items()
    ]
