"""Shared fixtures."""

from __future__ import annotations

import signal
import socket
from collections.abc import Generator, Iterator
from pathlib import Path
from types import SimpleNamespace

import grpc
import grpc_testing
import pytest
from support import RunningServer, everything_is_required, require, running_server

from specgen.v1 import specgen_pb2
from specgen_server.rpc.calls import Calls
from specgen_server.rpc.public_way import PublicWay
from specgen_server.rpc.server import spec_methods
from specgen_server.settings import Settings

__all__ = ["in_process_server", "require"]

# Where the suite was started in the background, a shell has Ctrl-C ignored, and all that the
# tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

SERVICE = specgen_pb2.DESCRIPTOR.services_by_name["SpecService"]


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outermost: an expected failure is known then
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail what is skipped, where everything is required."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and everything_is_required():
        report.outcome = "failed"
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.longrepr = f"SPECGEN_REQUIRE_ALL is set, and this was skipped. {reason}"
    return report


BOTH_WAYS = {"test_service", "test_limits", "test_drain", "test_health", "test_tls"}
"""The files whose tests run with the call lane and without it."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "way" in metafunc.fixturenames and metafunc.module.__name__ in BOTH_WAYS:
        flags = [
            pytest.param("--call-lane", id="lane"),
            pytest.param("--no-call-lane", id="public"),
        ]
        metafunc.parametrize("way", flags, indirect=True, scope="session")


@pytest.fixture(scope="session")
def way(request: pytest.FixtureRequest) -> str:
    """Return the flag that says by which way calls come in."""
    return str(getattr(request, "param", "--call-lane"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, way: str) -> Iterator[RunningServer]:
    """Return a real server with default options, on a free loopback port."""
    log = tmp_path_factory.mktemp("server") / "stderr"
    with running_server("127.0.0.1:0", log, way) as running:
        yield running


@pytest.fixture
def unix_server(tmp_path: Path, way: str) -> Iterator[RunningServer]:
    """Return a real server with default options, on a unix socket."""
    with running_server(f"unix://{tmp_path}/specgen.sock", tmp_path / "stderr", way) as running:
        yield running


@pytest.fixture
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    """Return a plain channel to the real server, that takes large messages."""
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.address, limits) as channel:
        yield channel


@pytest.fixture
def in_process() -> grpc_testing.Server:
    """Return a server of grpcio-testing, with default options."""
    return in_process_server(Settings())


def in_process_server(settings: Settings) -> grpc_testing.Server:
    """Return a server of grpcio-testing: no serialization, so messages are bytes."""
    calls = Calls(enter=lambda record: None, named_callers=False)
    methods = spec_methods(settings)
    public = PublicWay(calls, methods, settings.max_message_bytes)
    unary, bulk = (public.behavior(method) for method in methods)
    servicer = SimpleNamespace(
        GenerateSpec=lambda wire, context: unary(iter([wire]), context), GenerateSpecs=bulk
    )
    return grpc_testing.server_from_dictionary({SERVICE: servicer}, grpc_testing.strict_real_time())


@pytest.fixture
def unused_address() -> str:
    """Return an address of loopback that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
