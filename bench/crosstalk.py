"""Callers with different requests and options, all at once: each gets its own answer.

    python bench/crosstalk.py --calls 100000

Some calls are cancelled, some have deadlines that are over at once, some are bulk calls. What
comes back is compared byte for byte with what was made of the same request alone.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
from collections import Counter
from typing import Any

import grpc

import corpus
from servers import running_server
from specgen.v1.specgen_pb2 import GenerateSpecsRequest, GenerateSpecsResponse
from specgen_core import SpecOptions
from specgen_core.answer import generate
from tvix.build.protos.build_pb2 import BuildRequest

CALLERS = 16
OPTIONS = {
    "{}": SpecOptions(),
    '{"rootless": false}': SpecOptions(rootless=False),
    '{"terminal": false}': SpecOptions(terminal=False),
    '{"sandbox_shell": "/other/sh"}': SpecOptions(sandbox_shell="/other/sh"),
}
EXPECTED_ENDS = {grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}


class Caller:
    """Calls, with a random sequence of its own, and counts what came of it."""

    def __init__(self, address: str, number: int, jobs: list[tuple[bytes, str, bytes]]) -> None:
        self._random = random.Random(number)
        self._jobs = jobs
        self.ends: Counter[str] = Counter()
        self._channel = grpc.insecure_channel(
            address, [("grpc.use_local_subchannel_pool", 1), ("specgen.caller", number)]
        )
        self._unary: Any = self._channel.unary_unary("/specgen.v1.SpecService/GenerateSpec")
        self._bulk: Any = self._channel.stream_stream("/specgen.v1.SpecService/GenerateSpecs")

    def run(self, calls: int) -> None:
        """Make so many calls."""
        with self._channel:
            for _ in range(calls):
                wire, options, answer = self._random.choice(self._jobs)
                try:
                    self.ends[self._call(wire, (("specgen-options", options),), answer)] += 1
                except grpc.RpcError as error:
                    expected = error.code() in EXPECTED_ENDS
                    self.ends[error.code().name if expected else f"wrong: {error.code()}"] += 1

    def _call(self, wire: bytes, metadata: tuple[tuple[str, str]], answer: bytes) -> str:
        kind = self._random.random()
        if kind < 0.05:
            self._unary.future(wire, metadata=metadata).cancel()
            return "CANCELLED"
        if kind < 0.1:
            timeout = self._random.choice((0.0005, 0.001, 0.002))
            return _compared(self._unary(wire, metadata=metadata, timeout=timeout), answer)
        if kind < 0.2:
            build = BuildRequest.FromString(wire)
            messages = [GenerateSpecsRequest(requests=[build] * 2).SerializeToString()] * 2
            for response in self._bulk(iter(messages), metadata=metadata, timeout=60):
                for result in GenerateSpecsResponse.FromString(response).results:
                    if _compared(result.spec.SerializeToString(deterministic=True), answer) != "OK":
                        return "wrong answer"
            return "OK, bulk"
        return _compared(self._unary(wire, metadata=metadata, timeout=60), answer)


def _compared(got: bytes, answer: bytes) -> str:
    return "OK" if got == answer else "wrong answer"


def main() -> int:
    """Call, and say whether it holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000)
    args = parser.parse_args()
    wires = [*corpus.closures()[:30], *corpus.sized(60, 20), *corpus.sized(1000, 2)]
    jobs = [
        (wire, text, generate(wire, options).SerializeToString(deterministic=True))
        for wire in wires
        for text, options in OPTIONS.items()
    ]
    with running_server("--workers", "2") as server:
        callers = [Caller(server.address, number, jobs) for number in range(CALLERS)]
        threads = [
            threading.Thread(target=caller.run, args=(args.calls // CALLERS,)) for caller in callers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    ends = sum((caller.ends for caller in callers), Counter[str]())
    for end, count in ends.most_common():
        print(f"{count:8} {end}")
    holds = not any(end.startswith("wrong") for end in ends)
    print("holds" if holds else "DOES NOT HOLD")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
