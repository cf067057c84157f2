"""Stopping in order: health first, then no more calls, and what is in flight finishes."""

from __future__ import annotations

import queue
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from raw_http2 import DATA, END_STREAM, HEADERS, RST_STREAM, connected
from support import RunningServer, build_request, running_server
from test_workers import wait_until

from specgen.v1.specgen_pb2 import GenerateSpecsRequest
from specgen.v1.specgen_pb2_grpc import SpecServiceStub
from specgen_client import SpecClient, SpecgenError
from specgen_server.rpc.lingering import is_read


class OpenStream:
    """A bulk call whose client decides when it goes on."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._requests: queue.Queue[GenerateSpecsRequest | None] = queue.Queue()
        self.responses = SpecServiceStub(channel).GenerateSpecs(self._sent(), timeout=60)

    def _sent(self) -> Iterator[GenerateSpecsRequest]:
        while (request := self._requests.get()) is not None:
            yield request

    def ask(self) -> int:
        """Ask for one build, and return how many results came."""
        self._requests.put(GenerateSpecsRequest(requests=[build_request()]))
        return len(next(self.responses).results)

    def end(self) -> None:
        self._requests.put(None)


@pytest.fixture
def draining(tmp_path: Path, way: str, request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    flags = (way, *getattr(request, "param", ("--grace", "20")))
    with running_server("127.0.0.1:0", tmp_path / "log", "--workers", "1", *flags) as server:
        yield server


def test_a_stream_in_flight_ends_cleanly(draining: RunningServer) -> None:
    with grpc.insecure_channel(draining.address) as channel:
        stream = OpenStream(channel)
        assert stream.ask() == 1
        draining.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert stream.ask() == 1
        stream.end()
        assert list(stream.responses) == []
        assert stream.responses.code() is grpc.StatusCode.OK
    assert draining.process.wait(10) == 0


def test_new_calls_are_refused_while_it_drains(draining: RunningServer) -> None:
    with grpc.insecure_channel(draining.address) as channel:
        stream = OpenStream(channel)
        assert stream.ask() == 1
        draining.process.send_signal(signal.SIGTERM)

        def refused() -> bool:
            with grpc.insecure_channel(draining.address) as other:
                try:
                    SpecServiceStub(other).GenerateSpec(build_request(), timeout=5)
                except grpc.RpcError as error:
                    return error.code() is grpc.StatusCode.UNAVAILABLE
                return False

        wait_until(refused, "UNAVAILABLE")
        stream.end()
        assert list(stream.responses) == []
    assert draining.process.wait(10) == 0


@pytest.mark.parametrize("draining", [("--drain-delay", "2", "--grace", "5")], indirect=True)
def test_health_says_so_before_calls_are_refused(draining: RunningServer) -> None:
    with SpecClient(draining.address) as client:
        assert client.is_serving()
        draining.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not client.is_serving(), "NOT_SERVING", 1.5)
        # a plain stub, which does not look at health
        with grpc.insecure_channel(draining.address) as channel:
            assert SpecServiceStub(channel).GenerateSpec(build_request(), timeout=5).json
    assert draining.process.wait(10) == 0


@pytest.mark.parametrize("draining", [("--grace", "0.5")], indirect=True)
def test_a_call_longer_than_the_grace_is_cut(draining: RunningServer) -> None:
    with grpc.insecure_channel(draining.address) as channel:
        stream = OpenStream(channel)
        assert stream.ask() == 1
        began = time.monotonic()
        draining.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError):
            next(stream.responses)
        assert draining.process.wait(10) == 0
        assert time.monotonic() - began < 5


def test_a_second_signal_ends_it_at_once(draining: RunningServer) -> None:
    with grpc.insecure_channel(draining.address) as channel:
        stream = OpenStream(channel)
        assert stream.ask() == 1
        draining.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in draining.log.read_text(), "the first signal seen")
        draining.process.send_signal(signal.SIGTERM)  # the same within a second: no second one
        assert stream.ask() == 1
        draining.process.send_signal(signal.SIGINT)
        assert draining.process.wait(5) == 1


def test_a_watcher_of_health_does_not_hold_it_up(draining: RunningServer) -> None:
    with SpecClient(draining.address) as client:  # watches, as it follows health
        assert client.generate(build_request()).json
        draining.process.send_signal(signal.SIGTERM)
        assert draining.process.wait(5) == 0


@pytest.mark.parametrize("bulk", [False, True], ids=["unary", "bulk"])
def test_answers_under_way_arrive(draining: RunningServer, way: str, bulk: bool) -> None:
    """A large answer, whose reader takes it slowly and grants windows to the last."""
    environment = [{"key": f"V{i:03}", "value": b"x" * 4000} for i in range(600)]
    request = build_request(environment_vars=environment)
    wire = request.SerializeToString()
    path = "/specgen.v1.SpecService/GenerateSpec"
    if bulk:
        path, wire = path + "s", GenerateSpecsRequest(requests=[request]).SerializeToString()
    with connected(draining.address) as connection:
        stream = connection.call(path, wire)
        received, kind, flags = 0, DATA, 0
        while not (kind == HEADERS and flags & END_STREAM):
            kind, flags, of, payload = connection.read()
            assert (kind, of) != (RST_STREAM, stream)
            if kind == DATA:
                if not received:
                    draining.process.send_signal(signal.SIGTERM)
                    wait_until(lambda: "stopping" in draining.log.read_text(), "it stops")
                received += len(payload)
                time.sleep(0.005)
                connection.grant(stream, len(payload), or_closed=way != "--call-lane")
    assert received > 2_000_000
    assert draining.process.wait(10) == 0


def test_callers_move_to_another_server(tmp_path: Path, way: str) -> None:
    flags = (way, "--workers", "1", "--drain-delay", "0.2")
    with (
        running_server("127.0.0.1:0", tmp_path / "one", *flags) as one,
        running_server("127.0.0.1:0", tmp_path / "two", *flags) as two,
        SpecClient(f"ipv4:{one.address},{two.address}") as client,
    ):
        for turn in range(200):
            if turn == 50:
                one.process.send_signal(signal.SIGTERM)
            try:
                assert client.generate(build_request()).json
            except SpecgenError as error:
                pytest.fail(f"call {turn}: {error}")
            time.sleep(0.005)
        assert one.process.wait(10) == 0
        assert two.process.poll() is None


def test_what_the_kernel_holds_may_not_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a descriptor to look with, or without /proc, a drain goes on."""

    def fails(_: Path) -> Any:
        raise OSError

    monkeypatch.setattr(Path, "iterdir", fails)

    assert is_read(time.perf_counter() - 10)
