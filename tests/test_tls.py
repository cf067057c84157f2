"""TLS and mTLS: who gets in, and certificates that are replaced under load."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import Authority, Certificate
from support import RunningServer, build_request, running_server
from test_workers import start, wait_until

from specgen_client import ServerUnavailable, SpecClient, SpecgenError, Tls


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def mtls_server(tmp_path: Path, authority: Authority, way: str) -> Iterator[RunningServer]:
    own = authority.issue("server")
    with running_server(
        "127.0.0.1:0",
        tmp_path / "log",
        *("--tls-cert", str(own.cert), "--tls-key", str(own.key)),
        *("--tls-client-ca", str(authority.ca), "--workers", "1", way),
    ) as server:
        yield server


def generate(server: RunningServer, tls: Tls | None) -> str:
    with SpecClient(server.address, tls=tls, timeout=10) as client:
        return client.generate(build_request()).json


def test_a_known_caller_is_served_and_named_in_the_log(
    mtls_server: RunningServer, authority: Authority
) -> None:
    own = authority.issue("coordinator-1")
    assert generate(mtls_server, Tls(authority.ca, own.cert, own.key))
    wait_until(lambda: "caller=coordinator-1" in mtls_server.log.read_text(), "the log line")


def test_without_a_certificate(mtls_server: RunningServer, authority: Authority) -> None:
    with pytest.raises(ServerUnavailable):
        generate(mtls_server, Tls(authority.ca))


def test_with_one_from_another_authority(
    mtls_server: RunningServer, authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path, "another authority").issue("stranger")
    with pytest.raises(ServerUnavailable):
        generate(mtls_server, Tls(authority.ca, stranger.cert, stranger.key))


def test_with_an_expired_one(mtls_server: RunningServer, authority: Authority) -> None:
    late = authority.issue("late", expired=True)
    with pytest.raises(ServerUnavailable):
        generate(mtls_server, Tls(authority.ca, late.cert, late.key))


def test_in_plain_text(mtls_server: RunningServer) -> None:
    with pytest.raises(ServerUnavailable):
        generate(mtls_server, None)


def test_a_client_that_does_not_trust_the_server(
    mtls_server: RunningServer, authority: Authority, tmp_path: Path
) -> None:
    own = authority.issue("coordinator-1")
    other = Authority(tmp_path, "another authority")
    with pytest.raises(ServerUnavailable):
        generate(mtls_server, Tls(other.ca, own.cert, own.key))


def served_serial(server: RunningServer, authority: Authority, own: Certificate) -> int:
    """Return the serial number of the certificate that a new connection gets."""
    context = ssl.create_default_context(cafile=str(authority.ca))
    context.load_cert_chain(own.cert, own.key)
    host, port = server.address.rsplit(":", 1)
    import socket

    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        certificate = tls.getpeercert()
        assert certificate
        return int(str(certificate["serialNumber"]), 16)


def test_rotation_under_load_fails_no_call(
    mtls_server: RunningServer, authority: Authority
) -> None:
    own = authority.issue("coordinator-1")
    tls = Tls(authority.ca, own.cert, own.key)
    stop = threading.Event()
    failures: list[str] = []
    calls = 0
    serials: set[int] = set()

    def load() -> None:
        nonlocal calls
        while not stop.is_set():
            try:  # a new connection each time, so that each looks at the files
                generate(mtls_server, tls)
            except SpecgenError as error:
                failures.append(str(error))
            calls += 1

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            serials.add(served_serial(mtls_server, authority, own))
            authority.issue("server")  # over the files of the former
            wait_until(
                lambda: served_serial(mtls_server, authority, own) not in serials,
                "the new one served",
            )
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert calls > 10
    assert mtls_server.log.read_text().count("read a new certificate") == 3


def test_a_broken_new_certificate_leaves_the_former_in_force(
    mtls_server: RunningServer, authority: Authority, tmp_path: Path
) -> None:
    own = authority.issue("coordinator-1")
    (tmp_path / "server.pem").write_text("half a certi")
    time.sleep(1.2)
    assert generate(mtls_server, Tls(authority.ca, own.cert, own.key))
    assert "keeping the former certificate" in mtls_server.log.read_text()


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        pytest.param(
            ("--tls-cert", "server.pem"), 2, "--tls-cert and --tls-key go together", id="no_key"
        ),
        pytest.param(("--tls-client-ca", "x.pem"), 2, "--tls-client-ca needs", id="ca_alone"),
        pytest.param(
            ("--tls-cert", "nowhere.pem", "--tls-key", "nowhere.key"),
            1,
            "cannot use nowhere.pem, nowhere.key for TLS: [Errno 2] No such file or directory",
            id="missing",
        ),
    ],
)
def test_wrong_flags(flags: tuple[str, ...], code: int, text: str) -> None:
    ended = start("--listen", "127.0.0.1:0", *flags)
    assert ended.returncode == code
    assert text in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_key_of_another_certificate(authority: Authority) -> None:
    one, other = authority.issue("one"), authority.issue("other")
    flags = ("--tls-cert", str(one.cert), "--tls-key", str(other.key))
    ended = start("--listen", "127.0.0.1:0", *flags)
    assert ended.returncode == 1
    assert "for TLS" in ended.stderr
