"""From bytes to bytes, in this process: parts (a) and (e) of the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import corpus

from specgen_core import (
    SpecOptions,
    diagnose,
    make_spec,
    oci,
    read_request,
)
from specgen_core.answer import generate_wire
from specgen_core.memo import forget_all
from specgen_core.template import spec_json
from tvix.build.protos.build_pb2 import BuildRequest

__all__ = ["growth", "make_spec_rows"]

OPTIONS = SpecOptions()
Step = Callable[[bytes], object]
Measure = Callable[[], float]


def from_bytes_to_bytes(wire: bytes) -> bytes:
    """Decode, validate, build and serialise: what the seed's figures are of."""
    return spec_json(read_request(wire), OPTIONS)


def answer(wire: bytes) -> bytes:
    """Do all that a call does: diagnostics and the SpecJSON around the spec as well."""
    return generate_wire(wire, OPTIONS)


def _seconds(step: Step, wires: Sequence[bytes]) -> float:
    began = time.perf_counter()
    for wire in wires:
        step(wire)
    return (time.perf_counter() - began) / len(wires)


def _cold(step: Step, wires: Sequence[bytes]) -> float:
    forget_all()
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
        "validate": read_request,
        "render": lambda wire: spec_json(read[wire], OPTIONS),
        "build": lambda wire: make_spec(read[wire], OPTIONS),
        "encode": lambda wire: oci.encode(specs[wire]),
        "diagnose": lambda wire: diagnose(read[wire], OPTIONS),
        "warm": from_bytes_to_bytes,
        "call": answer,
    }
    return {
        **{name: partial(_seconds, step, wires) for name, step in warm.items()},
        "cold": partial(_cold, from_bytes_to_bytes, wires),
        "new": partial(_each_new, from_bytes_to_bytes, wires),
    }


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
        parse = times["parse"]
        rows.append(
            (
                name,
                *(f"{times[part]:.1f}" for part in ("parse", "validate", "render")),
                *(f"{times[part]:.1f}" for part in ("build", "encode", "diagnose")),
                *(f"{times[part]:.1f}" for part in ("warm", "cold", "new", "call")),
                *(f"{times[part] / parse:.1f}" for part in ("warm", "cold", "new", "call")),
            )
        )
    return rows


def growth(rounds: int, quick: bool) -> list[tuple[str, ...]]:
    """Return the time an input takes, by how many there are, and its ratio to that at 60."""
    sizes = (10, 60, 1000, 10_000) if quick else (10, 60, 1000, 10_000, 100_000)
    an_input = {}
    for size in sizes:
        wires = corpus.sized(size, max(1, min(100, 20_000 // size)))
        step = {"warm": partial(_seconds, from_bytes_to_bytes, wires)}
        an_input[size] = _microseconds(step, rounds)["warm"] / size
    return [
        (f"{size}", f"{taken:.3f}", f"{taken / an_input[60]:.2f}")
        for size, taken in an_input.items()
    ]
