"""Requests to measure with: real ones, and real ones cut or grown to a size."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from functools import cache
from pathlib import Path

from tvix.build.protos.build_pb2 import BuildRequest
from tvix.castore.protos.castore_pb2 import Node

__all__ = ["bulk", "closures", "sized"]

HERE = Path(__file__).parent


def _read(path: Path) -> list[bytes]:
    with gzip.open(path) as lines:
        return [base64.b64decode(json.loads(line)["request_base64"]) for line in lines]


@cache
def closures() -> list[bytes]:
    """Return 120 distinct nixpkgs builds with all of their closures: 23 to 342 inputs each."""
    return _read(HERE / "data" / "closures.jsonl.gz")


@cache
def bulk() -> list[bytes]:
    """Return 160 distinct nixpkgs builds with their direct inputs, those of the golden cases."""
    return _read(HERE.parent / "tests" / "golden" / "real_bulk.jsonl.gz")


@cache
def _nodes() -> list[Node]:
    """Return all inputs of the closures, each once."""
    nodes = {
        node.SerializeToString(): node
        for request in closures()
        for node in BuildRequest.FromString(request).inputs
    }
    return list(nodes.values())


@cache
def sized(inputs: int, count: int) -> list[bytes]:
    """Return ``count`` distinct requests with so many inputs, and the rest of real closures.

    Their inputs are a window over all real inputs, so that neighbours share most of them, as
    the builds of one coordinator do. Where there are not enough, digests make new names.
    """
    known = _nodes()
    made = [_made(i) for i in range(inputs + count - len(known))]
    nodes = known + made
    requests = []
    for i in range(count):
        request = BuildRequest.FromString(closures()[i % len(closures())])
        del request.inputs[:]
        request.inputs.extend(sorted(nodes[i : i + inputs], key=_name))
        requests.append(request.SerializeToString())
    return requests


def _made(i: int) -> Node:
    digest = hashlib.sha256(str(i).encode()).digest()
    name = f"{digest.hex()[:32]}-package-{i}".encode()
    return Node(directory={"name": name, "digest": digest, "size": i})


def _name(node: Node) -> bytes:
    kind = node.WhichOneof("node")
    name: bytes = getattr(node, kind).name
    return name
