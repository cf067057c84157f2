"""grpc.health.v1: what it says, and that no client of it can bring the server down."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from support import RunningServer, build_request, running_server
from test_workers import wait_until

from specgen_client import SpecClient

SERVICES = ["", "specgen.v1.SpecService"]


@pytest.fixture
def health(channel: grpc.Channel) -> HealthStub:
    return HealthStub(channel)


@pytest.mark.parametrize("service", SERVICES)
def test_check(health: HealthStub, service: str) -> None:
    answer = health.Check(HealthCheckRequest(service=service), timeout=5)
    assert answer.status == HealthCheckResponse.SERVING


def test_check_of_a_service_that_is_not_there(health: HealthStub) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        health.Check(HealthCheckRequest(service="other"), timeout=5)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_list(health: HealthStub) -> None:
    answer = health.List(health_pb2.HealthListRequest(), timeout=5)
    assert sorted(answer.statuses) == SERVICES


@pytest.mark.parametrize(
    ("service", "status"),
    [*((service, HealthCheckResponse.SERVING) for service in SERVICES), ("other", 3)],
)
def test_watch_says_the_status_at_once(health: HealthStub, service: str, status: int) -> None:
    watch = health.Watch(HealthCheckRequest(service=service), timeout=5)
    assert next(watch).status == status
    watch.cancel()


def test_watch_says_when_it_changes(tmp_path: Path, way: str) -> None:
    flags = (way, "--workers", "1", "--drain-delay", "2")
    with (
        running_server("127.0.0.1:0", tmp_path / "log", *flags) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        watch: Iterator[HealthCheckResponse] = HealthStub(channel).Watch(
            HealthCheckRequest(), timeout=10
        )
        assert next(watch).status == HealthCheckResponse.SERVING
        server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == HealthCheckResponse.NOT_SERVING


def test_watchers_that_come_and_go_do_not_hang_the_server(server: RunningServer) -> None:
    """The packaged servicer hangs within a few hundred of these."""
    stop = threading.Event()
    turns = 0

    def come_and_go() -> None:
        nonlocal turns
        while not stop.is_set():
            with grpc.insecure_channel(server.address) as channel:
                watch = HealthStub(channel).Watch(HealthCheckRequest(), timeout=10)
                next(watch)
            turns += 1

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: turns >= 1000 or not all(t.is_alive() for t in threads), "turns", 60)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert turns >= 1000
    with SpecClient(server.address, timeout=10) as client:
        assert client.generate(build_request()).json


def test_many_watchers_take_no_threads_from_others(server: RunningServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        watches = [HealthStub(channel).Watch(HealthCheckRequest(), timeout=20) for _ in range(50)]
        assert {next(watch).status for watch in watches} == {HealthCheckResponse.SERVING}
        with SpecClient(server.address, timeout=10) as client:
            assert client.is_serving()
        for watch in watches:
            watch.cancel()
