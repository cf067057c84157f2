"""What one message can cost, whatever its shape: memory over its size, time, health meanwhile.

    python bench/shapes.py --mib 4

Each shape goes to a server of its own. Peak is the most memory that it took beyond what it had
before, over the message's size, gRPC's own copies included: the server and its side process
together, looked at two thousand times a second. Health is the slowest of the checks made meanwhile.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from servers import Running, children, resident, running_server
from specgen_client import SpecClient
from specgen_core.wire import delimited

__all__ = ["SHAPES"]

UNARY = "/specgen.v1.SpecService/GenerateSpec"
BULK = "/specgen.v1.SpecService/GenerateSpecs"
MOST_PEAK = 12.0  # gRPC itself takes 3 of any message, as those show that are refused
LEAST_SIZE = 4 << 20  # bytes; smaller messages may take what one of these may
MOST_HEALTH = 1.0  # seconds

SOUND = delimited(2, b"/bin/true")
DIGEST = delimited(2, bytes(32))


class Shape(NamedTuple):
    """A message of about so many bytes."""

    method: str
    make: Callable[[int], bytes]


def repeated(element: bytes) -> Callable[[int], bytes]:
    """Return what fills a message with one element."""
    return lambda size: SOUND + element * (size // len(element))


def distinct(element: Callable[[int, int], bytes], most: int) -> Callable[[int], bytes]:
    """Return what fills a message with so many elements, each long enough to fill it."""

    def make(size: int) -> bytes:
        return SOUND + b"".join(element(i, size // most) for i in range(most))

    return make


def constraints(body: bytes) -> bytes:
    """Return constraints with this in them."""
    return delimited(8, delimited(1, b"x86_64-linux") + body)


def padded(i: int, size: int, around: int) -> bytes:
    """Return a name of about so many bytes, less those around it."""
    return f"{i:06}".encode().ljust(max(6, size - around), b"n")[:255]


def node(i: int, size: int) -> bytes:
    """Return an input that is a directory."""
    return delimited(1, delimited(1, delimited(1, padded(i, size, 42)) + DIGEST))


def link(i: int, size: int) -> bytes:
    """Return an input that is a symlink."""
    return delimited(1, delimited(3, delimited(1, padded(i, size, 12)) + delimited(2, b"t")))


def bad_node(i: int, size: int) -> bytes:
    """Return an input that breaks rules."""
    return delimited(1, delimited(2, delimited(1, b"/\0" + padded(i, size, 12))))


def variable(i: int, size: int) -> bytes:
    """Return an environment variable."""
    return delimited(7, delimited(1, b"%06d" % i) + delimited(2, b"v" * max(1, size - 14)))


def argument(char: bytes) -> Callable[[int, int], bytes]:
    """Return what makes an argument of one character."""
    return lambda _, size: delimited(2, char * max(1, size - 3))


def additional_file(i: int, size: int) -> bytes:
    """Return an additional file."""
    return delimited(9, path(1)(i, size - 4))


def path(field: int, before: bytes = b"") -> Callable[[int, int], bytes]:
    """Return what makes a path in this field."""

    def make(i: int, size: int) -> bytes:
        return delimited(field, before + b"%06d" % i + b"/p" * (max(0, size - 10) // 2))

    return make


ELEMENTS, PATHS = 15_000, 4_096  # the limits of the server

SHAPES: dict[str, Shape] = {
    "arguments, empty": Shape(UNARY, repeated(delimited(2, b""))),
    "one argument of control characters": Shape(
        UNARY, lambda size: SOUND + delimited(2, b"\1" * size)
    ),
    "one variable of control characters": Shape(
        UNARY, lambda size: SOUND + delimited(7, delimited(1, b"a") + delimited(2, b"\1" * size))
    ),
    "inputs, empty": Shape(UNARY, repeated(delimited(1, b""))),
    "variables, empty": Shape(UNARY, repeated(delimited(7, b""))),
    "scratch paths, one byte": Shape(UNARY, repeated(delimited(4, b"a"))),
    "outputs, one byte": Shape(UNARY, repeated(delimited(6, b"a"))),
    "read-only paths, one byte": Shape(
        UNARY, lambda size: SOUND + constraints(delimited(3, b"/") * (size // 3))
    ),
    "additional files, empty": Shape(UNARY, repeated(delimited(9, b""))),
    "constraints, empty": Shape(UNARY, repeated(delimited(8, b""))),
    "unknown groups": Shape(UNARY, repeated(b"\x7b\x7c")),
    "inputs_dir of control characters": Shape(
        UNARY, lambda size: node(1, 60) + node(2, 60) + SOUND + delimited(5, b"\1" * size)
    ),
    "inputs, as many as may be": Shape(UNARY, distinct(node, ELEMENTS)),
    "symlinks, as many as may be": Shape(UNARY, distinct(link, ELEMENTS)),
    "broken inputs, as many as may be": Shape(UNARY, distinct(bad_node, ELEMENTS)),
    "variables, as many as may be": Shape(UNARY, distinct(variable, ELEMENTS)),
    "arguments, as many as may be": Shape(UNARY, distinct(argument(b"a"), ELEMENTS - 1)),
    "broken arguments, as many as may be": Shape(UNARY, distinct(argument(b"\0"), ELEMENTS - 1)),
    "scratch paths, as many as may be": Shape(UNARY, distinct(path(4), PATHS)),
    "outputs, as many as may be": Shape(
        UNARY, lambda size: delimited(4, b"s") + distinct(path(6, b"s/"), PATHS)(size)
    ),
    "read-only paths, as many as may be": Shape(
        UNARY,
        lambda size: (
            SOUND + constraints(b"".join(path(3, b"/")(i, size // PATHS) for i in range(PATHS)))
        ),
    ),
    "additional files, as many as may be": Shape(UNARY, distinct(additional_file, PATHS)),
    "bulk: builds, empty": Shape(BULK, lambda size: delimited(1, b"") * (size // 2)),
    "bulk: broken builds, as many as may be": Shape(
        BULK, lambda size: delimited(1, delimited(2, b"\0" * (size // 10_000 - 5))) * 10_000
    ),
    "bulk: sound builds, as many as may be": Shape(
        BULK, lambda size: delimited(1, delimited(2, b"/" * (size // 10_000 - 5))) * 10_000
    ),
    "bulk: options of mappings, empty": Shape(
        BULK, lambda size: delimited(2, delimited(5, b"") * (size // 2)) + delimited(1, SOUND)
    ),
}


class Seen(NamedTuple):
    """What a message came to."""

    size: int
    peak: float
    """Over the size."""
    seconds: float
    health: float
    """Seconds of the slowest check."""
    code: str


def measured(shape: Shape, size: int) -> Seen:
    """Send a message of a shape to a server, and see what it takes."""
    wire = shape.make(size)
    with running_server("--workers", "1") as server, SpecClient(server.address) as client:
        pids = [server.process.pid, _side_process(server)]
        _send(server.address, shape.method, SOUND)
        done = threading.Event()
        checks: list[float] = []
        taken = [_taken(pids)]

        def check() -> None:
            while not done.is_set():
                began = time.monotonic()
                client.is_serving()
                checks.append(time.monotonic() - began)

        def look() -> None:
            while not done.wait(0.0005):
                taken.append(_taken(pids))

        threads = [threading.Thread(target=each) for each in (check, look)]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        code = _send(server.address, shape.method, wire)
        seconds = time.monotonic() - began
        done.set()
        for thread in threads:
            thread.join()
    return Seen(len(wire), (max(taken) - taken[0]) / len(wire), seconds, max(checks), code)


def _taken(pids: list[int]) -> int:
    return sum(map(resident, pids))


def _side_process(server: Running) -> int:
    """Have a server start its side process; return its id once it waits for messages."""
    _send(server.address, UNARY, b"\0" * (1 << 20))  # to which the answer is short
    (side,) = children(server.process.pid)
    had, has = "", "?"
    while had != has:
        time.sleep(0.3)
        had, has = has, Path(f"/proc/{side}/schedstat").read_text()
    return side


def _send(address: str, method: str, wire: bytes) -> str:
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(address, unlimited) as channel:
        try:
            if method == UNARY:
                unary: Any = channel.unary_unary(method)
                unary(wire, timeout=120)
            else:
                bulk: Any = channel.stream_stream(method)
                for _ in bulk(iter([wire]), timeout=120):
                    pass
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def main() -> int:
    """Print the table; exit code 1 where a shape takes more than it may."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=float, default=4.0, help="size of the messages")
    parser.add_argument("--only", help="shapes whose name has this in it")
    args = parser.parse_args()
    print("| shape | MiB | peak over size | seconds | health, seconds | answer |")
    print("|---|---|---|---|---|---|")
    holds = True
    for name, shape in SHAPES.items():
        if args.only and args.only not in name:
            continue
        seen = measured(shape, int(args.mib * (1 << 20)))
        most = MOST_PEAK * max(seen.size, LEAST_SIZE)
        holds = holds and seen.peak * seen.size <= most and seen.health <= MOST_HEALTH
        figures = f"{seen.peak:.1f} | {seen.seconds:.2f} | {seen.health:.3f}"
        print(f"| {name} | {seen.size / (1 << 20):.1f} | {figures} | {seen.code} |", flush=True)
    print("holds" if holds else "DOES NOT HOLD")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
