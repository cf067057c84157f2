"""A client that floods, stalls or sends garbage harms no other."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from hypothesis import given
from raw_http2 import HEADERS, PREFACE, SETTINGS, frame, stalled_calls
from support import RunningServer, build_request, file, large_request, running_server
from test_drain import OpenStream
from test_properties import requests
from test_workers import wait_until

import specgen_server.rpc.service
from specgen.v1.specgen_pb2 import GenerateSpecsRequest
from specgen.v1.specgen_pb2 import SpecOptions as SpecOptionsMessage
from specgen.v1.specgen_pb2_grpc import SpecServiceStub
from specgen_client import CallFailed, SpecClient
from specgen_core import SpecOptions, generate, read_request
from specgen_server.rpc.errors import TooLarge, TooMany
from specgen_server.rpc.message_limits import MessageLimits, is_light_bulk, least_answer_bytes
from specgen_server.rpc.service import SpecService
from specgen_server.telemetry.stats import CallRecord
from tvix.build.protos.build_pb2 import BuildRequest


@pytest.fixture
def limited(tmp_path: Path, way: str) -> Iterator[RunningServer]:
    flags = (way, "--workers", "1", "--max-in-flight", "8", "--max-streams", "2")
    with running_server("127.0.0.1:0", tmp_path / "log", *flags) as server:
        yield server


def test_idle_streams_harm_no_other(limited: RunningServer, way: str) -> None:
    """Without the lane they hold threads, so there is a limit; with it they hold none."""
    with ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(limited.address)) for _ in range(3)]
        streams = [OpenStream(channel) for channel in channels[:2]]
        assert [stream.ask() for stream in streams] == [1, 1]
        streams.append(OpenStream(channels[2]))
        if way == "--call-lane":
            assert streams[2].ask() == 1
        else:
            with pytest.raises(grpc.RpcError) as refused:
                streams[2].ask()
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert refused.value.details() == (
                "2 calls are in flight, which is this server's limit: try later"
            )
        with SpecClient(limited.address) as client:
            assert client.is_serving()
            assert client.generate(build_request()).json
        for stream in streams:
            stream.end()
            stream.responses.cancel()


GENERATE = "/specgen.v1.SpecService/GenerateSpec"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECT = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


@pytest.mark.parametrize(
    "stalled",
    [
        pytest.param([(GENERATE, 300)], id="unary"),
        pytest.param([(GENERATE, 300), (CHECK, 40), (WATCH, 40)], id="health_too"),
        pytest.param([(GENERATE, 88)] * 3, id="three_connections"),
        pytest.param([(GENERATE + "s", 300)], id="bulk"),
        pytest.param([(REFLECT, 50)], id="reflection"),
    ],
)
def test_calls_that_stall_hold_nothing_that_others_need(
    tmp_path: Path, way: str, stalled: list[tuple[str, int]]
) -> None:
    """Headers have come, and the message does not: the others are answered, and at once."""
    with (
        running_server("127.0.0.1:0", tmp_path / "log", "--workers", "1", way) as server,
        ExitStack() as stack,
        grpc.insecure_channel(server.address) as channel,
    ):
        for method, count in stalled:
            stack.enter_context(stalled_calls(server.address, count, method))
        health, specs = HealthStub(channel), SpecServiceStub(channel)
        watch = health.Watch(HealthCheckRequest(), timeout=10)
        assert next(watch).status == HealthCheckResponse.SERVING
        seconds = []
        for _ in range(10):
            began = time.monotonic()
            assert health.Check(HealthCheckRequest(), timeout=10).status == 1
            answers = [
                code_of(lambda: specs.GenerateSpec(build_request(), timeout=10)),
                code_of(lambda: list(specs.GenerateSpecs(iter([one_build()]), timeout=10))),
            ]
            seconds.append(time.monotonic() - began)
            if way == "--call-lane":
                assert answers == [grpc.StatusCode.OK] * 2
            assert set(answers) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert min(seconds) < 0.05
        reflect = channel.stream_stream(REFLECT)
        assert len(list(reflect(iter([LIST_SERVICES]), timeout=10))) == 1


LIST_SERVICES = ServerReflectionRequest(list_services="").SerializeToString()


def one_build() -> GenerateSpecsRequest:
    return GenerateSpecsRequest(requests=[build_request()])


def code_of(call: Callable[[], object]) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_a_burst_of_large_calls_is_answered_or_refused(tmp_path: Path, way: str) -> None:
    """Never UNAVAILABLE, which HTTP/2's own limit of streams makes of it."""
    request = build_request(additional_files=[{"path": "build/a", "contents": b"x" * 280_000}])
    flags = ("--workers", "1", "--max-in-flight", "8", way)
    with (
        running_server("127.0.0.1:0", tmp_path / "log", *flags) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        call = SpecServiceStub(channel).GenerateSpec
        calls = [call.future(request, timeout=60) for _ in range(200)]
        codes = {one.code() for one in calls}
    assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert grpc.StatusCode.OK in codes


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="http1"),
        pytest.param(b"\0" * 1000, id="zeros"),
        pytest.param(PREFACE + b"\xff" * 1000, id="no_frames"),
        pytest.param(
            PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, 4, 1, b"\xff" * 50), id="no_headers"
        ),
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


def test_messages_beyond_the_limit(tmp_path: Path, way: str) -> None:
    flags = (way, "--workers", "1", "--max-message-bytes", "1000000")
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
    monkeypatch.setattr(specgen_server.rpc.service, "answer_bytes", made)
    call = Mock(record=CallRecord("GenerateSpec"), metadata=(), others_wait=False)

    with pytest.raises(TooLarge, match="this server sends at most 50000 "):
        SpecService(limits=MessageLimits(max_message_bytes=50_000), quick=False).generate_spec(
            wire, call
        )


def test_a_long_list_hides_behind_no_other_field() -> None:
    """Fields from number 16 on have tags of two bytes, and what is in them is no field."""
    hidden = b"\x0a\xc2\x80\xc2\x80\x04"  # as a field, it would be one GiB long
    wire = SpecOptionsMessage(personality=hidden.decode()).SerializeToString()
    wire += SpecOptionsMessage(devices=[""] * 5000).SerializeToString()

    with pytest.raises(TooMany, match=r"options\.devices: must have at most 4096 "):
        MessageLimits().check_options(wire)


@pytest.mark.parametrize(
    ("builds", "extra", "light"),
    [
        pytest.param([10] * 16, b"", True, id="few"),
        pytest.param([10] * 16, b"\x12\x00", True, id="with_options"),
        pytest.param([10] * 16, b"\x12\x00\x12\x00", False, id="many_fields"),
        pytest.param([10] * 18, b"", False, id="many"),
        pytest.param([60_000] * 4, b"", True, id="small"),
        pytest.param([70_000], b"", False, id="large"),
        pytest.param([60_000] * 5, b"", False, id="large_together"),
        pytest.param([], b"", True, id="none"),
        pytest.param([], b"\x0a", True, id="cut_short"),
        pytest.param([], b"\x0a\xff\xff\x7f", False, id="longer_than_it_is"),
    ],
)
def test_which_bulk_messages_are_light(builds: list[int], extra: bytes, light: bool) -> None:
    """They are answered on the lane itself, so none may take long."""
    requests = [BuildRequest(working_dir="w" * (size - 5)) for size in builds]
    wire = GenerateSpecsRequest(requests=requests).SerializeToString()
    assert is_light_bulk(wire + extra) == light


def test_the_size_of_a_bulk_answer_is_counted_to_the_byte() -> None:
    wire = GenerateSpecsRequest(requests=[build_request()] * 3).SerializeToString()
    call = Mock(record=CallRecord("GenerateSpecs"), metadata=(), others_wait=False)
    size = len(SpecService().generate_specs(wire, call))

    exact = SpecService(limits=MessageLimits(max_message_bytes=size))
    assert len(exact.generate_specs(wire, call)) == size
    with pytest.raises(TooLarge):
        SpecService(limits=MessageLimits(max_message_bytes=size - 1)).generate_specs(wire, call)


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
                call.cancel()
        assert client.generate(build_request()).json


def test_max_connection_age_asks_clients_to_connect_anew(tmp_path: Path, way: str) -> None:
    flags = (way, "--workers", "1", "--max-connection-age", "1", "--log-format", "json")
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
