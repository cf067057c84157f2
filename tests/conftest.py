"""Shared fixtures."""

from __future__ import annotations

import signal
import socket
from collections.abc import Generator, Iterator
from pathlib import Path

import grpc
import grpc_testing
import pytest
from support import RunningServer, everything_is_required, require, running_server

from specgen.v1 import specgen_pb2
from specgen_server.rpc.service import SpecServicer

__all__ = ["require"]

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


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Return a real server with default options, on a free loopback port."""
    log = tmp_path_factory.mktemp("server") / "stderr"
    with running_server("127.0.0.1:0", log) as running:
        yield running


@pytest.fixture
def unix_server(tmp_path: Path) -> Iterator[RunningServer]:
    """Return a real server with default options, on a unix socket."""
    with running_server(f"unix://{tmp_path}/specgen.sock", tmp_path / "stderr") as running:
        yield running


@pytest.fixture
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    """Return a plain channel to the real server, that takes large messages."""
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.address, limits) as channel:
        yield channel


@pytest.fixture
def in_process() -> grpc_testing.Server:
    """Return a server of grpcio-testing: no serialization, no interceptors."""
    return grpc_testing.server_from_dictionary(
        {SERVICE: SpecServicer()}, grpc_testing.strict_real_time()
    )


@pytest.fixture
def unused_address() -> str:
    """Return an address of loopback that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
