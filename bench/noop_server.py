"""The floor of the stack: a request's bytes answered with the spec made beforehand.

By grpc.server(), or on the call lane.
"""

from __future__ import annotations

import argparse
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import corpus

if "--call-lane" in sys.argv:
    import specgen_server.rpc  # noqa: F401  # before gRPC, whose poller it chooses
import grpc

from specgen_core import SpecOptions
from specgen_core.answer import generate


def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--call-lane", action="store_true")
    args = parser.parse_args()
    wires = [*corpus.closures(), *corpus.sized(60, 100)]
    answers = {wire: generate(wire, SpecOptions()).SerializeToString() for wire in wires}
    options = [("grpc.so_reuseport", 0)]
    server: Any
    if args.call_lane:
        from specgen_server.rpc.call_lane import CallLane
        from specgen_server.rpc.calls import Calls, Limit, Method

        calls = Calls(enter=lambda _: None, named_callers=False)
        limit = Limit(256, "calls")
        method = Method(
            "specgen.v1.SpecService", "GenerateSpec", lambda wire, _: answers[wire], limit
        )
        server = CallLane(calls, [method], 0, options)
        server.add_port(args.listen, None)
    else:
        server = grpc.server(ThreadPoolExecutor(4), options=options)
        handler: Any = grpc.unary_unary_rpc_method_handler(lambda wire, _: answers[wire])
        server.add_registered_method_handlers("specgen.v1.SpecService", {"GenerateSpec": handler})
        server.add_insecure_port(args.listen)
    server.start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
