"""The floor of the stack: grpcio answering a request's bytes with the spec made beforehand."""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor

import grpc

import corpus
from specgen_core import SpecOptions
from specgen_core.answer import generate


def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True)
    args = parser.parse_args()
    wires = [*corpus.closures(), *corpus.sized(60, 100)]
    answers = {wire: generate(wire, SpecOptions()).SerializeToString() for wire in wires}
    method = grpc.unary_unary_rpc_method_handler(lambda wire, _: answers[wire])
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    server.add_registered_method_handlers("specgen.v1.SpecService", {"GenerateSpec": method})
    server.add_insecure_port(args.listen)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
