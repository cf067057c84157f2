"""Listening: several addresses, unix sockets and whose they are, and what cannot be had."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support import RunningServer, build_request, running_server
from test_workers import answers, start, wait_until

from specgen_client import SpecClient
from specgen_server.addresses import AddressError, reserve, unix_path


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


@pytest.mark.parametrize(
    ("address", "why"),
    [
        pytest.param(
            "*:50061", "for all addresses of this host write [::]:50061 or 0.0.0.0:50061", id="star"
        ),
        pytest.param(
            ":50061",
            "for all addresses of this host write [::]:50061 or 0.0.0.0:50061",
            id="no_host",
        ),
        pytest.param(
            "::1:50061", "an IPv6 address stands in brackets, as in [::1]:50051", id="no_brackets"
        ),
        pytest.param("h\u00f6st" * 20 + ":1", "it is not HOST:PORT or unix:///PATH", id="no_name"),
        pytest.param("127.0.0.1:\u0661", "it is not HOST:PORT or unix:///PATH", id="odd_digit"),
        pytest.param(
            "unix:@name",
            "an abstract socket has no mode, so everybody could call: give a path",
            id="abstract",
        ),
        pytest.param("unix-abstract:name", "it is not HOST:PORT or unix:///PATH", id="grpcs"),
        pytest.param(
            "unix://rel.sock",
            "after unix:// comes an absolute path, as in unix:///run/specgen.sock",
            id="authority",
        ),
        pytest.param(
            "unix:a%20b.sock",
            "gRPC takes a percent sign for the start of an encoded character",
            id="percent",
        ),
        pytest.param("unix:", "it is not HOST:PORT or unix:///PATH", id="no_path"),
        pytest.param("unix:///", "it is not HOST:PORT or unix:///PATH", id="root"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_malformed_address(address: str, why: str, workers: int) -> None:
    with pytest.raises(AddressError) as failed:
        reserve(address, shared=workers > 1)
    assert str(failed.value) == f"cannot listen on {address}: {why}"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_malformed_address_is_one_line(workers: str) -> None:
    ended = start("--listen", "*:50061", "--workers", workers)
    assert ended.returncode == 1
    assert re.fullmatch(r"\S+ error: cannot listen on \*:50061: [^\n]+\n", ended.stderr)


def test_a_socket_path_that_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 107)
    with pytest.raises(AddressError) as failed:
        reserve(f"unix:{path}", shared=False)
    assert str(failed.value) == f"cannot listen on {path}: a socket's path has at most 107 bytes"
    assert list(tmp_path.iterdir()) == []


def test_a_relative_socket_with_the_longest_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "\u00fc" * 53 + "x"  # 107 bytes
    with running_server(f"unix:{name}", tmp_path / "log") as server:
        assert answers(server.address)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]


@pytest.mark.parametrize("name", ["a b.sock", "q?x#y.sock", "@.sock"])
def test_odd_names_are_taken_to_the_letter(tmp_path: Path, name: str) -> None:
    with running_server(f"unix:{tmp_path}/{name}", tmp_path / "log", "--unix-mode", "600"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_a_failed_listen_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "specgen.sock"
    ended = start("--listen", f"unix://{path}", "--unix-group", "nobody-has-this-group")
    assert ended.returncode == 1
    assert f"cannot set the group or mode of {path}" in ended.stderr
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.endswith(".lock")] == []


def test_a_lock_that_was_removed_is_no_lock(tmp_path: Path) -> None:
    address = f"unix://{tmp_path}/specgen.sock"
    first = reserve(address, shared=False)
    (tmp_path / "specgen.sock.lock").unlink()
    second = reserve(address, shared=False)  # somebody removed it: theirs is the risk
    with pytest.raises(AddressError, match="another server does"):
        reserve(address, shared=False)
    second.release()
    first.release()
    assert list(tmp_path.iterdir()) == []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


ONE = "127.0.0.1"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(ONE, ONE, id="the_same"),
        pytest.param(ONE, "localhost", id="name"),
        pytest.param("localhost", ONE, id="name_first"),
        pytest.param(ONE, "0.0.0.0", id="wildcard"),
        pytest.param("0.0.0.0", ONE, id="wildcard_first"),
        pytest.param(ONE, "[::]", id="ipv6_wildcard"),
        pytest.param("[::1]", "0.0.0.0", id="either_wildcard"),
        pytest.param("0.0.0.0", "[::]", id="both_wildcards"),
        pytest.param("[::ffff:127.0.0.1]", ONE, id="mapped"),
    ],
)
@pytest.mark.parametrize("shared", [(True, True), (False, True), (True, False)])
def test_two_servers_never_share_a_port(first: str, second: str, shared: tuple[bool, bool]) -> None:
    """Whether or not the first one's workers listen yet."""
    port = free_port()
    held = reserve(f"{first}:{port}", shared=shared[0])
    with pytest.raises(AddressError) as failed:
        reserve(f"{second}:{port}", shared=shared[1])
    assert str(failed.value) == f"cannot listen on {second}:{port}: Address already in use"
    held.release()
    reserve(f"{second}:{port}", shared=shared[1]).release()


def test_different_addresses_share_a_port() -> None:
    port = free_port()
    held = [reserve(f"127.0.0.{i}:{port}", shared=True) for i in (1, 2, 3)]
    for one in held:
        one.release()


def test_two_servers_started_together_on_two_names(tmp_path: Path) -> None:
    port = free_port()
    addresses = [f"{host}:{port}" for host in ("127.0.0.1", "localhost", "0.0.0.0", "[::]")]
    all_of_them = [
        subprocess.Popen(
            [sys.executable, "-m", "specgen_server", "--listen", address, "--workers", "2"],
            stderr=subprocess.PIPE,
            text=True,
        )
        for address in addresses
    ]
    try:
        wait_until(lambda: sum(one.poll() is None for one in all_of_them) == 1, "one of them left")
        assert answers(f"127.0.0.1:{port}")
        assert sorted(one.poll() or 0 for one in all_of_them) == [0, 1, 1, 1]
    finally:
        for one in all_of_them:
            one.terminate()
            _, stderr = one.communicate(timeout=20)
            assert one.returncode == 0 or "Address already in use" in stderr


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("order", [("0.0.0.0", "[::]"), ("[::]", "0.0.0.0")])
def test_both_wildcards_together(tmp_path: Path, workers: str, order: tuple[str, str]) -> None:
    port = free_port()
    first, second = (f"{host}:{port}" for host in order)
    flags = ("--listen", second, "--workers", workers)
    with running_server(first, tmp_path / "log", *flags):
        assert answers(f"127.0.0.1:{port}")
        assert answers(f"[::1]:{port}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SPECGEN_VERSION", "true"),
        ("SPECGEN_VERSION", "1.2.3"),
        ("SPECGEN_HELP", "true"),
        ("SPECGEN_H", "x"),
    ],
)
def test_options_that_are_no_settings_read_no_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with running_server("127.0.0.1:0", tmp_path / "log", "--workers", "1") as server:
        assert answers(server.address)


@pytest.mark.parametrize("missing", ["grpc_reflection", "prometheus_client"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_without_the_server_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, workers: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Nothing:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {missing!r}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Nothing())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ended = start("--listen", "127.0.0.1:0", "--workers", workers)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"Error: not installed: {missing}; pip install 'tvix-specgen[server]' brings it\n"
    )
