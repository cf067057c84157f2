"""Metrics over all workers, as Prometheus reads them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import RunningServer, build_request, file, running_server
from test_workers import children, start, wait_until

from servers import resident
from specgen.v1.specgen_pb2 import SpecOptions
from specgen_client import RequestRefused, SpecClient

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(address: str) -> Samples:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        text = response.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_calls_are_counted_over_all_workers(
    tmp_path: Path, workers: str, unused_address: str
) -> None:
    flags = ("--workers", workers, "--metrics", unused_address)
    with running_server("127.0.0.1:0", tmp_path / "log", *flags) as server:
        for _ in range(6):  # a connection each, so that they spread
            with SpecClient(server.address) as client:
                client.generate(build_request(inputs=[file("a"), file("b")]))
                with pytest.raises(RequestRefused):
                    client.generate(build_request(command_args=[]))
                list(client.generate_many([build_request(), build_request()]))
        unary = {"method": "GenerateSpec"}
        bulk = {"method": "GenerateSpecs"}

        def counted() -> bool:
            return of(scrape(unused_address), "specgen_calls_total", code="OK", **bulk) == 6

        wait_until(counted, "all calls counted")
        samples = scrape(unused_address)
    assert of(samples, "specgen_calls_total", code="OK", **unary) == 6
    assert of(samples, "specgen_calls_total", code="INVALID_ARGUMENT", **unary) == 6
    assert of(samples, "specgen_call_duration_seconds_count", **unary) == 12
    assert 0 < of(samples, "specgen_call_duration_seconds_sum", **unary) < 60
    assert of(samples, "specgen_call_duration_seconds_bucket", le="+Inf", **unary) == 12
    assert of(samples, "specgen_request_inputs_count") == 18
    assert of(samples, "specgen_request_inputs_sum") == 12
    assert of(samples, "specgen_request_inputs_bucket", le="1.0") == 12
    assert of(samples, "specgen_request_bytes_count", **bulk) == 6
    assert of(samples, "specgen_response_bytes_sum", **unary) > 6 * 2000
    assert of(samples, "specgen_calls_in_flight") == 0
    assert of(samples, "specgen_call_lane") == int(workers)
    assert of(samples, "specgen_workers") == int(workers)
    assert of(samples, "specgen_worker_restarts_total") == 0


def test_counts_outlive_a_worker(tmp_path: Path, unused_address: str) -> None:
    flags = ("--workers", "2", "--metrics", unused_address)
    with running_server("127.0.0.1:0", tmp_path / "log", *flags) as server:
        with SpecClient(server.address) as client:
            client.generate(build_request())
        labels = {"method": "GenerateSpec", "code": "OK"}
        wait_until(
            lambda: of(scrape(unused_address), "specgen_calls_total", **labels) == 1, "one call"
        )
        for worker in children(server.process.pid):
            os.kill(worker, signal.SIGKILL)
        wait_until(
            lambda: of(scrape(unused_address), "specgen_worker_restarts_total") == 2, "restarts"
        )
        wait_until(lambda: of(scrape(unused_address), "specgen_workers") == 2, "new workers")
        assert of(scrape(unused_address), "specgen_calls_total", **labels) == 1


def test_an_address_that_is_taken(tmp_path: Path) -> None:
    with running_server("127.0.0.1:0", tmp_path / "log", "--workers", "1") as server:
        ended = start("--listen", "127.0.0.1:0", "--metrics", server.address)
    assert ended.returncode == 1
    assert f"cannot serve metrics at {server.address}: Address already in use" in ended.stderr


def test_a_mistyped_address() -> None:
    ended = start("--listen", "127.0.0.1:0", "--metrics", "9464")
    assert ended.returncode == 1
    assert "cannot serve metrics at 9464: it is not HOST:PORT" in ended.stderr


def test_options_count_as_any_call(tmp_path: Path, unused_address: str) -> None:
    flags = ("--workers", "1", "--metrics", unused_address)
    with (
        running_server("127.0.0.1:0", tmp_path / "log", *flags) as server,
        SpecClient(server.address) as client,
    ):
        client.generate(build_request(), options=SpecOptions(rootless=False))
        labels = {"method": "GenerateSpec", "code": "OK"}
        wait_until(
            lambda: of(scrape(unused_address), "specgen_calls_total", **labels) == 1, "one call"
        )


@pytest.mark.parametrize(
    ("listen", "asked"),
    [
        pytest.param("127.0.0.1", ["127.0.0.1"], id="ipv4"),
        pytest.param("[::1]", ["[::1]"], id="ipv6"),
        pytest.param("localhost", ["localhost"], id="name"),
        pytest.param("[::]", ["127.0.0.1", "[::1]"], id="ipv6_wildcard"),
        pytest.param("0.0.0.0", ["127.0.0.1", "[::1]"], id="ipv4_wildcard"),
    ],
)
def test_where_metrics_are_served(
    tmp_path: Path, unused_address: str, listen: str, asked: list[str]
) -> None:
    port = unused_address.rpartition(":")[2]
    flags = ("--metrics", f"{listen}:{port}", "--workers", "1")
    with running_server("127.0.0.1:0", tmp_path / "log", *flags):
        for host in asked:
            assert of(scrape(f"{host}:{port}"), "specgen_worker_restarts_total") == 0


@contextlib.contextmanager
def metrics_served(
    tmp_path: Path, address: str
) -> Iterator[tuple[RunningServer, Callable[[], socket.socket]]]:
    """Run a server with metrics; yield it, and what connects to them."""
    flags = ("--workers", "1", "--metrics", address)
    host, _, port = address.rpartition(":")
    with (
        running_server("127.0.0.1:0", tmp_path / "log", *flags) as server,
        contextlib.ExitStack() as stack,
    ):
        yield (
            server,
            lambda: stack.enter_context(socket.create_connection((host, int(port)), 10)),
        )


def test_connections_that_do_not_go_on_make_room(tmp_path: Path, unused_address: str) -> None:
    with metrics_served(tmp_path, unused_address) as (server, connect):
        pid = server.process.pid

        def open_files() -> int:
            return len(list(Path(f"/proc/{pid}/fd").iterdir()))

        before = open_files()
        idle = []
        for _ in range(100):
            idle.append(connect())
            idle[-1].sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        wait_until(lambda: idle[80].recv(1) == b"", "the oldest ended")
        wait_until(lambda: open_files() <= before + 16, "their descriptors closed")
        wait_until(lambda: of(scrape(unused_address), "specgen_workers") == 1, "a report")
        with SpecClient(server.address) as client:
            assert client.generate(build_request()).json


def test_a_connection_that_says_nothing_ends(tmp_path: Path, unused_address: str) -> None:
    with metrics_served(tmp_path, unused_address) as (server, connect):
        assert connect().recv(1) == b""
        assert "Traceback" not in server.log.read_text()


def test_headers_without_end_are_not_kept(tmp_path: Path, unused_address: str) -> None:
    with metrics_served(tmp_path, unused_address) as (server, connect):
        assert scrape(unused_address)
        before = resident(server.process.pid)
        for _ in range(16):
            end = connect()
            with contextlib.suppress(OSError):  # it is closed meanwhile
                end.sendall(b"GET /metrics HTTP/1.1\r\n" + (b"X: " + b"x" * 60_000 + b"\r\n") * 95)
        assert scrape(unused_address)
        assert resident(server.process.pid) < before + 30 * 2**20
