"""Listening: several addresses, unix sockets and whose they are, and what cannot be had."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
from support import RunningServer, build_request, running_server
from test_workers import answers, start

from specgen_client import SpecClient
from specgen_server.addresses import unix_path


@pytest.mark.parametrize(
    ("address", "path"),
    [
        pytest.param("unix:///run/specgen.sock", "/run/specgen.sock", id="absolute"),
        pytest.param("unix:/run/specgen.sock", "/run/specgen.sock", id="short"),
        pytest.param("unix:specgen.sock", "specgen.sock", id="relative"),
        pytest.param("127.0.0.1:50051", None, id="tcp"),
    ],
)
def test_unix_path(address: str, path: str | None) -> None:
    assert unix_path(address) == (Path(path) if path else None)


def test_several_addresses(tmp_path: Path) -> None:
    sock = f"unix://{tmp_path}/specgen.sock"
    with running_server("127.0.0.1:0", tmp_path / "log", "--listen", sock) as server:
        assert answers(server.address)
        assert answers(sock)


def test_several_addresses_with_several_workers(tmp_path: Path) -> None:
    sock = f"unix://{tmp_path}/specgen.sock"
    flags = ("--listen", sock, "--workers", "2")
    with running_server("127.0.0.1:0", tmp_path / "log", *flags) as server:
        assert answers(server.address)
        assert answers(sock)


def test_ipv6(tmp_path: Path) -> None:
    with running_server("[::1]:0", tmp_path / "log", "--workers", "1") as server:
        assert answers(server.address)


def test_unix_mode_and_group(tmp_path: Path) -> None:
    path = tmp_path / "specgen.sock"
    group = str(os.getgid()) if os.getuid() else "nogroup"
    flags = ("--unix-mode", "600", "--unix-group", group)
    if os.getuid():
        flags = flags[:2]
    with running_server(f"unix://{path}", tmp_path / "log", *flags) as server:
        assert answers(server.address)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        if not os.getuid():
            assert path.group() == "nogroup"


def test_a_second_server_on_a_unix_socket_says_so(unix_server: RunningServer) -> None:
    ended = start("--listen", unix_server.address)
    assert ended.returncode == 1
    assert "another server does" in ended.stderr
    assert answers(unix_server.address)


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "specgen.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with running_server(f"unix://{path}", tmp_path / "log") as server:
        assert answers(server.address)


def test_a_killed_servers_socket_is_replaced(tmp_path: Path) -> None:
    address = f"unix://{tmp_path}/specgen.sock"
    with running_server(address, tmp_path / "first") as first:
        first.process.kill()
        first.process.wait()
        with running_server(address, tmp_path / "second") as second:
            assert answers(second.address)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        pytest.param("nonsense", "it is not HOST:PORT or unix:///PATH", id="no_port"),
        pytest.param("127.0.0.1:70000", "it is not HOST:PORT or unix:///PATH", id="port_too_large"),
        pytest.param("192.0.2.1:0", "Cannot assign requested address", id="not_ours"),
        pytest.param("unix:///nowhere/x.sock", "No such file or directory", id="no_directory"),
    ],
)
def test_an_address_that_cannot_be_had(address: str, why: str) -> None:
    ended = start("--listen", address)
    assert ended.returncode == 1
    assert f"cannot listen on {address.removeprefix('unix://')}: {why}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    ended = start("--listen", f"unix://{path}")
    assert ended.returncode == 1
    assert "it exists, and is no socket" in ended.stderr
    assert path.read_text() == "data"


def test_flags_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECGEN_ROOTLESS", "false")
    monkeypatch.setenv("SPECGEN_TERMINAL", "false")
    with (
        running_server("127.0.0.1:0", tmp_path / "log", "--workers", "1") as server,
        SpecClient(server.address) as client,
    ):
        spec = client.generate(build_request())
    assert '"terminal":false' in spec.json
    assert '"type":"user"' not in spec.json
