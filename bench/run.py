"""The table of docs/performance.md, on this machine: ``make bench``.

Everything is measured in this one run, in turns, as medians of several rounds; what counts
are the ratios. bench/README.md says how to read it.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version

import in_process
import load
import wire

Row = tuple[str, ...]


def table(title: str, head: Row, rows: list[Row]) -> None:
    """Print a Markdown table."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    print(f"\n### {title}\n")
    for row in (head, tuple("-" * width for width in widths), *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |")
    sys.stdout.flush()


def machine() -> None:
    """Print what this was measured on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in open("/proc/cpuinfo")  # noqa: SIM115, PTH123
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    names = ("grpcio", "protobuf", "msgspec", "blake3")
    libraries = ", ".join(f"{name} {version(name)}" for name in names)
    print(f"{len(os.sched_getaffinity(0))} cores of {model}; Python {platform.python_version()}")
    print(libraries)


def main() -> int:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="see that it works; figures are noise")
    parser.add_argument("--only", choices=list("abcdef"), action="append", help="just these parts")
    parser.add_argument("--peer", metavar="HOST:PORT", help="one more server, in the same rounds")
    parser.add_argument("--peer-method", metavar="SERVICE/METHOD", default=load.METHOD)
    args = parser.parse_args()
    peer = load.Target("peer", args.peer, args.peer_method) if args.peer else None
    rounds, seconds = (1, 0.5) if args.quick else (9, 1.2)

    def part_a() -> None:
        table(
            "(a) from bytes to bytes: microseconds a request, and ratios to parse alone",
            (
                "requests",
                *in_process.PARTS,
                *(f"{part}/parse" for part in in_process.RATIOS),
            ),
            in_process.make_spec_rows(2 if args.quick else 15, args.quick),
        )

    def part_b() -> None:
        head = ("transport", "requests", "in flight", "server", "calls/s", "p50 ms", "p99 ms")
        table(
            "(b) calls, one worker and the no-op server on the same core",
            (*head, "calls/no-op", "p50/no-op"),
            wire.load_rows(rounds, seconds, peer),
        )
        table(
            "(b) workers, 60 inputs over tcp, the load on the same cores",
            (
                *("in flight", "server", "calls/s", "p50 ms", "p99 ms", "ratio"),
                *("us a call", "us of the load", "a core each: ratio"),
            ),
            wire.worker_rows(rounds, seconds),
        )

    def part_c() -> None:
        table(
            "(c) bulk, 60 inputs, one worker",
            ("how", "specs/s", "to single calls"),
            wire.bulk_rows(rounds, seconds),
        )

    def part_d() -> None:
        table("(d) a worker", ("what", "median"), wire.process_rows(1 if args.quick else 5))

    def part_e() -> None:
        table(
            "(e) growth, warm",
            ("inputs", "microseconds an input", "to that at 60"),
            in_process.growth(2 if args.quick else 9, args.quick),
        )

    def part_f() -> None:
        table(
            "(f) small calls beside large ones: p99 of 60 inputs, milliseconds",
            ("workers", "alone", "beside 10000 inputs", "ratio"),
            wire.starvation_rows(rounds, seconds),
        )

    parts: dict[str, Callable[[], None]] = {
        "a": part_a,
        "b": part_b,
        "c": part_c,
        "d": part_d,
        "e": part_e,
        "f": part_f,
    }
    asked = args.only or list(parts)
    native = set(asked) & set("bcf")
    if native and not load.installed():
        print("no h2load (Debian: nghttp2-client): leaving out", *sorted(native), file=sys.stderr)
        asked = [part for part in asked if part not in native]
    machine()
    for part in asked:
        parts[part]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
