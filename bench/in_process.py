"""From bytes to bytes, in this process: parts (a) and (e) of the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import corpus

from specgen_server.generate import generate
from specgen_server.spec import SpecOptions, diagnose, make_spec, mounts, oci, read_request, request
from tvix.build.protos.build_pb2 import BuildRequest

__all__ = ["growth", "make_spec_rows"]

OPTIONS = SpecOptions()
Step = Callable[[bytes], object]


def from_bytes_to_bytes(wire: bytes) -> bytes:
    """Decode, validate, build and serialise: what the seed's figures are of."""
    return oci.encode(make_spec(read_request(wire), OPTIONS))


def answer(wire: bytes) -> bytes:
    """Do all that a call does: diagnostics and the SpecJSON around the spec as well."""
    return generate(wire, OPTIONS).SerializeToString()


def forget() -> None:
    """Forget all inputs and variables that have been seen."""
    for memo in (request._known_inputs, request._known_env_vars):
        memo.forget()
    mounts._input_mounts.cache_clear()


def _seconds(step: Step, wires: Sequence[bytes], *, before: Callable[[], None] | None) -> float:
    if before:
        before()
    began = time.perf_counter()
    for wire in wires:
        step(wire)
    return (time.perf_counter() - began) / len(wires)


def _microseconds(
    steps: dict[str, tuple[Step, Callable[[], None] | None]], wires: Sequence[bytes], rounds: int
) -> dict[str, float]:
    """Return the median of each step, the steps taking turns."""
    for step, _ in steps.values():
        for wire in wires:
            step(wire)
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, (step, before) in steps.items():
            taken[name].append(_seconds(step, wires, before=before))
    return {name: statistics.median(times) * 1e6 for name, times in taken.items()}


def _steps(wires: Sequence[bytes]) -> dict[str, tuple[Step, Callable[[], None] | None]]:
    read = {wire: read_request(wire) for wire in wires}
    specs = {wire: make_spec(one, OPTIONS) for wire, one in read.items()}
    return {
        "parse": (BuildRequest.FromString, None),
        "validate": (read_request, None),
        "build": (lambda wire: make_spec(read[wire], OPTIONS), None),
        "encode": (lambda wire: oci.encode(specs[wire]), None),
        "diagnose": (lambda wire: diagnose(read[wire], OPTIONS), None),
        "warm": (from_bytes_to_bytes, None),
        "cold": (from_bytes_to_bytes, forget),
        "call": (answer, None),
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
        times = _microseconds(_steps(wires), wires, rounds)
        parse = times["parse"]
        rows.append(
            (
                name,
                *(f"{times[part]:.1f}" for part in ("parse", "validate", "build", "encode")),
                *(f"{times[part]:.1f}" for part in ("diagnose", "warm", "cold", "call")),
                *(f"{times[part] / parse:.1f}" for part in ("warm", "cold", "call")),
            )
        )
    return rows


def growth(rounds: int, quick: bool) -> list[tuple[str, ...]]:
    """Return the time an input takes, by how many there are, and its ratio to that at 60."""
    sizes = (10, 60, 1000, 10_000) if quick else (10, 60, 1000, 10_000, 100_000)
    an_input = {}
    for size in sizes:
        wires = corpus.sized(size, max(1, min(100, 20_000 // size)))
        step = {"warm": (from_bytes_to_bytes, None)}
        an_input[size] = _microseconds(step, wires, rounds)["warm"] / size
    return [
        (f"{size}", f"{taken:.3f}", f"{taken / an_input[60]:.2f}")
        for size, taken in an_input.items()
    ]
