"""TLS and mTLS: who gets in, and certificates that are replaced under load."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority, Certificate
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from support import RunningServer, build_request, require_program, running_server
from test_workers import children, start, wait_until

from specgen_client import ServerUnavailable, SpecClient, SpecgenError, Tls
from specgen_server import tls_files
from specgen_server.rpc import credentials
from specgen_server.tls_files import CredentialsError, TlsFiles


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
            2,
            "cannot read nowhere.pem: No such file or directory",
            id="missing",
        ),
    ],
)
def test_wrong_flags(flags: tuple[str, ...], code: int, text: str) -> None:
    ended = start("--listen", "127.0.0.1:0", *flags)
    assert ended.returncode == code
    assert text in ended.stderr
    assert "Traceback" not in ended.stderr


def refusal(one: Certificate, client_ca: Path | None = None) -> str:
    """Return what is said of files that cannot be used."""
    files = TlsFiles(str(one.cert), str(one.key), str(client_ca) if client_ca else None)
    with pytest.raises(CredentialsError) as refused:
        files.check()
    return str(refused.value)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("which", ["cert", "key", "ca"])
def test_files_that_cannot_be_used_end_the_start_with_one_line(
    authority: Authority, which: str, workers: str
) -> None:
    one = authority.issue("one")
    path = {"cert": one.cert, "key": one.key, "ca": authority.ca}[which]
    path.write_text("not PEM")
    flags = ("--tls-cert", str(one.cert), "--tls-key", str(one.key))
    flags += ("--tls-client-ca", str(authority.ca), "--workers", workers)
    ended = start("--listen", "127.0.0.1:0", *flags)
    assert ended.returncode == 2
    what = "private key" if which == "key" else "certificate"
    said = rf"\S+ error: cannot use {re.escape(str(path))}: it has no {what} in PEM\n"
    assert re.fullmatch(said, ended.stderr)


@pytest.mark.parametrize("other_kind", [False, True])
def test_a_key_of_another_certificate(authority: Authority, other_kind: bool) -> None:
    one = authority.issue("one")
    other = authority.issue("other", key=RSA if other_kind else None)
    assert refusal(Certificate(one.cert, other.key)) == (
        f"cannot use {other.key}: it is the key of another certificate than {one.cert}"
    )


RSA = rsa.generate_private_key(65537, 2048)
P256 = ec.generate_private_key(ec.SECP256R1())
MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        pytest.param(ed448.Ed448PrivateKey.generate(), "Ed448", id="ed448"),
        pytest.param(
            ec.generate_private_key(ec.SECP224R1()),
            "of an elliptic curve other than P-256 and P-384",
            id="p224",
        ),
    ],
)
def test_a_key_that_grpc_lacks(authority: Authority, key: Any, kind: str) -> None:
    one = authority.issue("one", key=key)
    assert refusal(one) == f"cannot use {one.cert}: its key is {kind}, which gRPC lacks"


def test_rsa_pss(tmp_path: Path) -> None:
    require_program("openssl")
    one = Certificate(tmp_path / "pss.pem", tmp_path / "pss.key")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-subj", "/CN=pss"),
            *("-newkey", "rsa-pss", "-pkeyopt", "rsa_keygen_bits:2048"),
            *("-keyout", one.key, "-out", one.cert),
        ],
        check=True,
        capture_output=True,
    )
    assert refusal(one) == f"cannot use {one.cert}: its key is RSA-PSS, which gRPC lacks"


@pytest.mark.parametrize("which", ["cert", "key", "ca"])
@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param(b"", "it has no {what} in PEM", id="empty"),
        pytest.param(b"not PEM\n", "it has no {what} in PEM", id="text"),
        pytest.param(b"\x30\x82\x01\x0a\xff", "it has no {what} in PEM", id="der"),
        pytest.param(
            MARK + b"-----BEGIN CERTIFICATE-----\n",
            "it begins with a byte order mark, which is no PEM",
            id="byte_order_mark",
        ),
    ],
)
def test_a_file_that_is_no_pem(authority: Authority, which: str, content: bytes, why: str) -> None:
    one = authority.issue("one")
    path = {"cert": one.cert, "key": one.key, "ca": authority.ca}[which]
    path.write_bytes(content)
    what = "private key" if which == "key" else "certificate"
    assert refusal(one, authority.ca) == f"cannot use {path}: {why.format(what=what)}"


@pytest.mark.parametrize("cut", [0, 1, 100, 300])
def test_a_damaged_certificate(authority: Authority, cut: int) -> None:
    one = authority.issue("one")
    lines = one.cert.read_text().splitlines()
    one.cert.write_text("\n".join([lines[0], "".join(lines[1:-1])[:cut], lines[-1]]) + "\n")
    assert refusal(one) == f"cannot use {one.cert}: it has a damaged certificate"


def test_an_encrypted_key(authority: Authority) -> None:
    one = authority.issue("one")
    one.key.write_bytes(
        P256.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    assert refusal(one) == (
        f"cannot use {one.key}: the key is encrypted: give one without a password"
    )


def test_all_certificates_of_a_chain_have_a_time(authority: Authority) -> None:
    one, late = authority.issue("one"), authority.issue("late", expired=True)
    with one.cert.open("ab") as chain:
        chain.write(late.cert.read_bytes())
    [warning] = TlsFiles(str(one.cert), str(one.key), str(late.cert)).check()[:1]
    assert re.fullmatch(rf"{one.cert}, certificate 2: it expired on \S+Z", warning)


@pytest.mark.parametrize(
    ("how", "warning"),
    [
        pytest.param({"expired": True}, r"{cert}: it expired on {date}", id="expired"),
        pytest.param({"early": True}, r"{cert}: it is not valid before {date}", id="early"),
        pytest.param(
            {"key": ed25519.Ed25519PrivateKey.generate()},
            "{cert}: its key is Ed25519, so clients built on gRPC's C core cannot connect: "
            "take RSA, P-256 or P-384",
            id="ed25519",
        ),
        pytest.param(
            {"key": ec.generate_private_key(ec.SECP521R1())},
            "{cert}: its key is P-521, so clients built on gRPC's C core cannot connect: "
            "take RSA, P-256 or P-384",
            id="p521",
        ),
    ],
)
def test_warnings(tmp_path: Path, authority: Authority, how: dict[str, Any], warning: str) -> None:
    """At the start, and when such a certificate comes later; and there are none of others."""
    own = authority.issue("server", **how)
    certificate = x509.load_pem_x509_certificate(own.cert.read_bytes())
    day = (
        certificate.not_valid_before_utc if "early" in how else certificate.not_valid_after_utc
    ).strftime("%Y-%m-%dT%H:%M:%SZ")
    said = f"warning: {warning.format(cert=own.cert, date=day)}\n"
    flags = ("--tls-cert", str(own.cert), "--tls-key", str(own.key), "--workers", "1")
    with running_server("127.0.0.1:0", tmp_path / "log", *flags) as server:
        assert server.log.read_text().count(said) == 1
        authority.issue("server")
        wait_until(lambda: looked(server).count("read a new certificate") == 1, "a sound one")
        assert generate(server, Tls(authority.ca))
        log = server.log.read_text()
        authority.issue("server", **how)
        wait_until(lambda: looked(server).count("read a new certificate") == 2, "such a one")
        new = server.log.read_text().removeprefix(log)
    assert re.search(r"warning: \S+server\.pem: it", new)
    assert "warning:" not in log.replace(said, "")


def looked(server: RunningServer) -> str:
    """Have the server look at its files, and return its log."""
    host, port = server.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10):
        time.sleep(0.1)
    return server.log.read_text()


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(RSA, id="rsa"),
        pytest.param(P256, id="p256"),
        pytest.param(ec.generate_private_key(ec.SECP384R1()), id="p384"),
    ],
)
def test_keys_that_serve(tmp_path: Path, authority: Authority, key: Any) -> None:
    own = authority.issue("server", key=key)
    flags = ("--tls-cert", str(own.cert), "--tls-key", str(own.key), "--workers", "1")
    with running_server("127.0.0.1:0", tmp_path / "log", *flags) as server:
        assert generate(server, Tls(authority.ca))
        assert "warning:" not in server.log.read_text()


def test_a_new_certificate_that_grpc_lacks_is_not_said_to_be_read(
    mtls_server: RunningServer, authority: Authority
) -> None:
    own = authority.issue("coordinator-1")
    bad = authority.issue("server", key=ed448.Ed448PrivateKey.generate())
    said = f"keeping the former certificate: cannot use {bad.cert}: its key is Ed448"
    wait_until(lambda: said in looked(mtls_server), "the warning")
    assert generate(mtls_server, Tls(authority.ca, own.cert, own.key))
    assert "read a new certificate" not in mtls_server.log.read_text()


SPIFFE = x509.UniformResourceIdentifier("spiffe://example.org/builder")
URI = x509.UniformResourceIdentifier("https://example.org/builder")
DNS = x509.DNSName("builder.example.org")


@pytest.mark.parametrize(
    ("name", "names", "caller"),
    [
        pytest.param("cn", [SPIFFE, DNS], "cn", id="common_name"),
        pytest.param("", [DNS, SPIFFE], "spiffe://example.org/builder", id="spiffe"),
        pytest.param("", [DNS, URI], "https://example.org/builder", id="uri"),
        pytest.param("", [DNS], "builder.example.org", id="dns"),
        pytest.param("", [x509.RFC822Name("b@example.org")], "b@example.org", id="email"),
        pytest.param("a\nb caller=c\x1b", [DNS], r'"a\\nb caller=c\\x1b"', id="escaped"),
    ],
)
def test_the_caller_in_the_log(
    mtls_server: RunningServer,
    authority: Authority,
    name: str,
    names: list[x509.GeneralName],
    caller: str,
) -> None:
    own = authority.issue(name, file="caller", names=names)
    assert generate(mtls_server, Tls(authority.ca, own.cert, own.key))
    wait_until(lambda: f" caller={caller} request_id=" in mtls_server.log.read_text(), "the line")


def test_a_half_written_key_does_not_end_sound_workers(
    tmp_path: Path, authority: Authority
) -> None:
    """A worker that dies just then cannot come back, until the files are right again."""
    own = authority.issue("server")
    key = own.key.read_bytes()
    flags = ("--tls-cert", str(own.cert), "--tls-key", str(own.key), "--workers", "2")
    with running_server("127.0.0.1:0", tmp_path / "log", *flags) as server:
        sound, killed = children(server.process.pid)
        own.key.write_bytes(key[:50])
        os.kill(killed, signal.SIGKILL)
        failed = f"cannot start: cannot use {own.cert} and {own.key}: one of them is damaged"
        wait_until(lambda: server.log.read_text().count(failed) >= 2, "two attempts")
        assert generate(server, Tls(authority.ca))
        own.key.write_bytes(key)
        wait_until(lambda: len(children(server.process.pid)) == 2, "a new worker")
        assert children(server.process.pid)[0] == sound
        assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("how", ["variable", "flag"])
@pytest.mark.parametrize("name", ["tls-client-ca", "tls-cert", "tls-key"])
def test_an_empty_name_of_a_file(monkeypatch: pytest.MonkeyPatch, how: str, name: str) -> None:
    """Taken for none, it would let everybody call."""
    flags = (f"--{name}", "") if how == "flag" else ()
    if how == "variable":
        monkeypatch.setenv(f"SPECGEN_{name.upper().replace('-', '_')}", "")
    ended = start("--listen", "127.0.0.1:0", *flags)
    assert ended.returncode == 2
    assert "is empty" in ended.stderr


def test_a_change_of_mode_is_a_change(tmp_path: Path) -> None:
    """A key that could not be read is tried again after chmod(1)."""
    path = tmp_path / "key.pem"
    path.touch(0o000)
    before = credentials._stamp(str(path))
    time.sleep(0.01)
    path.chmod(0o644)

    assert credentials._stamp(str(path)) != before


def test_certificates_without_end_are_found_in_linear_time() -> None:
    """One pass over the text finds none of them: no part of it is looked at for each."""
    text = "-----BEGIN CERTIFICATE-----\nAAAA\n" * 100_000

    assert tls_files._CERTIFICATE.findall(text) == []
