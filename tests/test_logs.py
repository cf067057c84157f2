"""Log lines: one a call, with what an operator looks for, and tracebacks of what is ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from support import RunningServer, build_request, running_server
from test_workers import wait_until

from specgen.v1.specgen_pb2_grpc import SpecServiceStub
from specgen_client import RequestRefused, SpecClient


def calls(log: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in lines if line["message"] == "call"]


def test_json_lines(tmp_path: Path) -> None:
    flags = ("--workers", "1", "--log-format", "json")
    with running_server("127.0.0.1:0", tmp_path / "log", *flags) as server:
        with grpc.insecure_channel(server.address) as channel:
            SpecServiceStub(channel).GenerateSpec(
                build_request(), timeout=5, metadata=(("x-request-id", "build-17"),)
            )
        with SpecClient(server.address) as client:
            with pytest.raises(RequestRefused):
                client.generate(build_request(command_args=[]))
            list(client.generate_many([build_request()] * 3))
        wait_until(lambda: len(calls(server.log)) == 3, "three lines")
        named, refused, bulk = calls(server.log)
    assert named["method"] == "GenerateSpec"
    assert named["code"] == "OK"
    assert named["request_id"] == "build-17"
    assert named["request_bytes"] == len(build_request().SerializeToString())
    assert named["response_bytes"] > 2000
    assert named["duration_ms"] > 0
    assert named["peer"].startswith("ipv4:127.0.0.1:")
    assert named["builds"] == 1
    assert named["level"] == "info"
    assert refused["code"] == "INVALID_ARGUMENT"
    assert len(refused["request_id"]) == 16
    assert (bulk["method"], bulk["code"], bulk["builds"]) == ("GenerateSpecs", "OK", 3)


def test_human_lines(tmp_path: Path) -> None:
    with running_server("127.0.0.1:0", tmp_path / "log", "--workers", "1") as server:
        with SpecClient(server.address) as client:
            client.generate(build_request())
        wait_until(lambda: " info: GenerateSpec OK " in server.log.read_text(), "the line")


def test_no_line_a_call_above_level_info(tmp_path: Path) -> None:
    sock = f"unix://{tmp_path}/specgen.sock"
    log = tmp_path / "log"
    import subprocess
    import sys

    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "specgen_server", "--listen", sock, "--log-level", "warning"],
            stderr=stderr,
        )
    try:
        with SpecClient(sock, wait_for_ready=True) as client:
            client.generate(build_request())
    finally:
        process.terminate()
        assert process.wait(20) == 0
    (line,) = log.read_text().splitlines()
    assert f"listening on {sock}" in line


def test_a_request_id_from_outside_cannot_forge_a_line(server: RunningServer) -> None:
    """Metadata is printable ASCII by HTTP/2's own rules: gRPC sends nothing else."""
    with (
        grpc.insecure_channel(server.address) as channel,
        pytest.raises((grpc.RpcError, ValueError)),
    ):
        SpecServiceStub(channel).GenerateSpec(
            build_request(), timeout=5, metadata=(("x-request-id", "a\nb"),)
        )
