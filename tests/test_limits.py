"""A client that floods, stalls or sends garbage harms no other."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
from hypothesis import given
from support import RunningServer, build_request, file, large_request, running_server
from test_drain import OpenStream
from test_properties import requests
from test_workers import wait_until

import specgen_server.rpc.service
from specgen.v1.specgen_pb2_grpc import SpecServiceStub
from specgen_client import CallFailed, SpecClient
from specgen_core import SpecOptions, generate, read_request
from specgen_server.rpc.answer_size import least_answer_bytes
from specgen_server.rpc.service import SpecServicer
from specgen_server.telemetry.stats import CallRecord
from tvix.build.protos.build_pb2 import BuildRequest

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return (
        struct.pack(">I", len(payload))[1:]
        + bytes((kind, flags))
        + struct.pack(">I", stream)
        + payload
    )


def header(name: str, value: str) -> bytes:
    """Encode a header literally, without Huffman or index (RFC 7541, 6.2.2)."""
    return b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()


@contextmanager
def stalled_calls(address: str, count: int) -> Iterator[None]:
    """Begin unary calls whose message never comes."""
    host, port = address.rsplit(":", 1)
    headers = b"".join(
        header(name, value)
        for name, value in (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/specgen.v1.SpecService/GenerateSpec"),
            (":authority", address),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        )
    )
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(PREFACE + frame(4, 0, 0))
        for number in range(count):
            connection.sendall(frame(1, 4, 2 * number + 1, headers))
        yield


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[RunningServer]:
    flags = ("--workers", "1", "--max-in-flight", "8", "--max-streams", "2")
    with running_server("127.0.0.1:0", tmp_path / "log", *flags) as server:
        yield server


def test_streams_beyond_the_limit_are_refused_and_harm_no_other(limited: RunningServer) -> None:
    with ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(limited.address)) for _ in range(3)]
        streams = [OpenStream(channel) for channel in channels[:2]]
        assert [stream.ask() for stream in streams] == [1, 1]
        third = OpenStream(channels[2])
        with pytest.raises(grpc.RpcError) as refused:
            third.ask()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.value.details() == (
            "2 calls are in flight, which is this server's limit: try later"
        )
        with SpecClient(limited.address) as client:
            assert client.is_serving()
            assert client.generate(build_request()).json
        for stream in (*streams, third):
            stream.end()
            stream.responses.cancel()


def test_one_connection_that_stalls_leaves_room_for_others(limited: RunningServer) -> None:
    with stalled_calls(limited.address, 50), SpecClient(limited.address, timeout=10) as client:
        for _ in range(20):
            assert client.generate(build_request()).json
        assert client.is_serving()


def test_calls_beyond_the_limit_are_refused_but_health_is_not(limited: RunningServer) -> None:
    with (
        stalled_calls(limited.address, 4),
        stalled_calls(limited.address, 4),
        SpecClient(limited.address, timeout=10) as client,
    ):

        def refused() -> bool:
            try:
                client.generate(build_request())
            except CallFailed as error:
                return error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            return False

        wait_until(refused, "RESOURCE_EXHAUSTED")
        assert client.is_serving()
    with SpecClient(limited.address, timeout=10) as client:
        wait_until(lambda: not refused_by(client), "room again, once the stalled ones are gone")


def refused_by(client: SpecClient) -> bool:
    try:
        client.generate(build_request())
    except CallFailed:
        return True
    return False


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="http1"),
        pytest.param(b"\0" * 1000, id="zeros"),
        pytest.param(PREFACE + b"\xff" * 1000, id="no_frames"),
        pytest.param(PREFACE + frame(4, 0, 0) + frame(1, 4, 1, b"\xff" * 50), id="no_headers"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_a_connection_with_garbage(server: RunningServer, garbage: bytes) -> None:
    host, port = server.address.rsplit(":", 1)
    with (
        socket.create_connection((host, int(port)), timeout=10) as connection,
        SpecClient(server.address) as client,
    ):
        connection.sendall(garbage)
        assert client.generate(build_request()).json


def test_messages_beyond_the_limit(tmp_path: Path) -> None:
    flags = ("--workers", "1", "--max-message-bytes", "1000000")
    with (
        running_server("127.0.0.1:0", tmp_path / "log", *flags) as server,
        SpecClient(server.address) as client,
    ):
        with pytest.raises(CallFailed) as refused:
            client.generate(large_request())
        assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in refused.value.details
        assert client.generate(build_request()).json


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(
            {"inputs_dir": "d" * 1000, "inputs": [file(f"{i:03}") for i in range(100)]},
            id="long_inputs_dir",
        ),
        pytest.param({"scratch_paths": ["nix/store", "s" * 100_000]}, id="long_scratch_path"),
        pytest.param(
            {"scratch_paths": ["nix/store", *(f"s{i:03}" for i in range(1000))]},
            id="many_scratch_paths",
        ),
        pytest.param(
            {"environment_vars": [{"key": "a", "value": b"\x01" * 2_000_000}]}, id="long_variable"
        ),
    ],
)
def test_answers_beyond_the_limit_are_refused_before_they_are_made(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*_: Any) -> bytes:
        raise AssertionError

    wire = build_request(**fields).SerializeToString()
    monkeypatch.setattr(specgen_server.rpc.service, "answer", made)
    call = CallRecord("GenerateSpec")
    servicer = SpecServicer(max_message_bytes=50_000)
    context = Mock(invocation_metadata=tuple, abort=Mock(side_effect=ZeroDivisionError))

    with pytest.raises(ZeroDivisionError):
        servicer.generate_spec(wire, context, call)
    code, details = context.abort.call_args.args
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "this server sends at most 50000" in details


@given(requests())
def test_no_answer_is_refused_that_is_within_the_limit(message: BuildRequest) -> None:
    answer = generate(message, SpecOptions()).SerializeToString()

    assert least_answer_bytes(read_request(message)) <= len(answer)


def test_an_expired_call_in_the_queue_costs_nothing_more(limited: RunningServer) -> None:
    with SpecClient(limited.address, timeout=10) as client:
        with grpc.insecure_channel(limited.address) as channel:
            stub = SpecServiceStub(channel)
            calls = [stub.GenerateSpec.future(build_request(), timeout=0.001) for _ in range(50)]
            for call in calls:
                # grpcio's client loses one of some ten thousand such deadlines
                with suppress(grpc.FutureTimeoutError):
                    call.exception(timeout=1)
        assert client.generate(build_request()).json


def test_max_connection_age_asks_clients_to_connect_anew(tmp_path: Path) -> None:
    flags = ("--workers", "1", "--max-connection-age", "1", "--log-format", "json")
    with (
        running_server("127.0.0.1:0", tmp_path / "log", *flags) as server,
        SpecClient(server.address) as client,
    ):
        peers = set()

        def two_connections() -> bool:
            assert client.generate(build_request()).json
            peers.update(
                line.split('"peer":"')[1].split('"')[0]
                for line in server.log.read_text().splitlines()
                if '"peer":"' in line
            )
            return len(peers) > 1

        wait_until(two_connections, "a second connection")


def test_frequent_keepalive_pings_are_no_offence(server: RunningServer) -> None:
    options = [
        ("grpc.keepalive_time_ms", 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_time_between_pings_ms", 1000),
    ]
    with grpc.insecure_channel(server.address, options) as channel:
        stub = SpecServiceStub(channel)
        states: list[grpc.ChannelConnectivity] = []
        channel.subscribe(states.append)
        assert stub.GenerateSpec(build_request(), timeout=5).json
        threading.Event().wait(4)
        assert stub.GenerateSpec(build_request(), timeout=5).json
        assert states.count(grpc.ChannelConnectivity.READY) == 1
