"""Mutated wire messages, answered in this process and over a socket.

    python bench/fuzz.py in-process --messages 1000000
    python bench/fuzz.py socket --messages 50000

Whatever comes in, the answer is OK or INVALID_ARGUMENT, and memory stays flat, once what a server
remembers of requests (quick/) has filled up: the second half is measured.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc

from servers import resident, running_server
from specgen_server.rpc.errors import status_of
from specgen_server.rpc.service import SpecService
from specgen_server.telemetry.stats import CallRecord

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
ALLOWED = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}


def seeds() -> list[bytes]:
    """Return real requests of moderate size, and all the invalid ones."""
    with gzip.open(GOLDEN / "real_bulk.jsonl.gz") as lines:
        real = [base64.b64decode(json.loads(line)["request_base64"]) for line in lines]
    invalid = [
        base64.b64decode(case["request_base64"])
        for case in json.loads((GOLDEN / "invalid.json").read_text())
    ]
    return [seed for seed in real if len(seed) < 8_000] + invalid


def mutated(rng: random.Random, seeds: list[bytes]) -> Iterator[bytes]:
    """Yield messages without end, each a few mutations away from a seed."""
    while True:
        message = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(4)):
            MUTATIONS[rng.randrange(len(MUTATIONS))](rng, message, seeds)
        yield bytes(message)


def _flip(rng: random.Random, message: bytearray, _: list[bytes]) -> None:
    if message:
        message[rng.randrange(len(message))] ^= 1 << rng.randrange(8)


def _overwrite(rng: random.Random, message: bytearray, _: list[bytes]) -> None:
    if message:
        message[rng.randrange(len(message))] = rng.choice(b"\0\1./=\x7f\x80\xff")


def _cut(rng: random.Random, message: bytearray, _: list[bytes]) -> None:
    start = rng.randrange(len(message) + 1)
    del message[start : start + rng.randrange(64)]


def _truncate(rng: random.Random, message: bytearray, _: list[bytes]) -> None:
    del message[rng.randrange(len(message) + 1) :]


def _insert(rng: random.Random, message: bytearray, _: list[bytes]) -> None:
    at = rng.randrange(len(message) + 1)
    message[at:at] = rng.randbytes(rng.randrange(16))


def _repeat(rng: random.Random, message: bytearray, _: list[bytes]) -> None:
    start = rng.randrange(len(message) + 1)
    message += message[start : start + rng.randrange(256)]


def _splice(rng: random.Random, message: bytearray, seeds: list[bytes]) -> None:
    other = rng.choice(seeds)
    message += other[rng.randrange(len(other) + 1) :]


MUTATIONS = (_flip, _overwrite, _cut, _truncate, _insert, _repeat, _splice)


def in_process(messages: int, rng: random.Random) -> tuple[Counter[grpc.StatusCode], int, int]:
    """Have the service answer them in this process; return codes, and memory before and after."""
    # Without quick, whose pieces would fill up for millions of messages yet: a leak would not
    # show beside that.
    service = SpecService(quick=False)
    call = SimpleNamespace(
        metadata=(),
        record=CallRecord("GenerateSpec"),
        others_wait=False,
        is_active=lambda: True,
    )

    def send(message: bytes) -> grpc.StatusCode:
        try:
            service.generate_spec(message, call)
        except Exception as error:
            return status_of(error).code
        return grpc.StatusCode.OK

    codes: Counter[grpc.StatusCode] = Counter()
    codes += _send(send, messages // 2, rng)
    before = resident("self")
    codes += _send(send, messages - messages // 2, rng)
    return codes, before, resident("self")


def over_socket(messages: int, rng: random.Random) -> tuple[Counter[grpc.StatusCode], int, int]:
    """Send them to a server; return codes, and its memory before and after."""
    with (
        running_server("--workers", "1") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        call: Any = channel.unary_unary("/specgen.v1.SpecService/GenerateSpec")

        def send(message: bytes) -> grpc.StatusCode:
            try:
                call(message, timeout=20)
            except grpc.RpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        codes: Counter[grpc.StatusCode] = Counter()
        codes += _send(send, messages // 2, rng)
        before = resident(server.process.pid)
        codes += _send(send, messages - messages // 2, rng)
        return codes, before, resident(server.process.pid)


def _send(
    send: Callable[[bytes], grpc.StatusCode], messages: int, rng: random.Random
) -> Counter[grpc.StatusCode]:
    source = mutated(rng, seeds())
    return Counter(send(next(source)) for _ in range(messages))


def main() -> int:
    """Run what is asked for; exit code 1 where it does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("where", choices=["in-process", "socket"])
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    run = in_process if args.where == "in-process" else over_socket
    began = time.monotonic()
    codes, before, after = run(args.messages, random.Random(args.seed))
    growth = after / before - 1
    for code, count in codes.most_common():
        print(f"{code.name}: {count}")
    print(f"resident memory: {before / 2**20:.1f} -> {after / 2**20:.1f} MiB ({growth:+.1%})")
    print(f"{args.messages} messages in {time.monotonic() - began:.0f} s, seed {args.seed}")
    holds = set(codes) <= ALLOWED and codes[grpc.StatusCode.OK] > 0 and growth < 0.10
    print("holds" if holds else "DOES NOT HOLD")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
