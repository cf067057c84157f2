"""The ``specgen`` command and servers: addresses, TLS, and servers that answer anything."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Authority
from click.testing import CliRunner, Result
from support import build_request, running_server

from specgen.v1.specgen_pb2 import SpecJSON
from specgen_client.cli import main
from specgen_commands.server_address import BadAddress, check_server_address
from specgen_core import SpecOptions
from specgen_core.answer import generate

SPECGEN = Path(sys.executable).with_name("specgen")
REQUEST = build_request(inputs=[])
FORMS = "HOST:PORT, unix:///PATH or dns:///NAME:PORT"
PORTS = "a port is a number from 1 to 65535"


def command(*words: str | Path) -> Result:
    """Run it in process; an exception that is none of click's fails the test."""
    return CliRunner().invoke(
        main,
        [words[0], "-", *map(str, words[1:])],
        input=REQUEST.SerializeToString(),
        catch_exceptions=False,
    )


# --- addresses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:50051",
        "localhost:1",
        "name.example:65535",
        "[::1]:50051",
        "dns:///name.example:50051",
        "dns:name.example:50051",
        "dns://8.8.8.8/name.example:50051",
        "dns:///[::1]:50051",
        "unix:///run/specgen.sock",
        "unix:/run/specgen.sock",
        "unix:specgen.sock",
        "bücher.example:443",
    ],
)
def test_an_address(address: str) -> None:
    check_server_address(address)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        pytest.param("", "it is empty, and must be an address", id="empty"),
        pytest.param(" \t", "it is empty, and must be an address", id="blank"),
        pytest.param("\udcff:1", "\\udcff:1 is not UTF-8", id="not_utf8"),
        pytest.param("a\x1b:1", f"a\\x1b:1 is not {FORMS}", id="escape"),
        *(
            pytest.param(address, f"{address} is not {FORMS}", id=address)
            for address in (
                "localhost",
                "127.0.0.1",
                "localhost:",
                "localhost:http",
                "localhost:-1",
                "localhost:+1",
                "localhost:1 ",
                "localhost:٣",
                ":50051",
                "::1:50051",
                "[::1]",
                "[localhost]:1",
                "[::1:50051",
                "http://127.0.0.1:50051",
                "https://name.example:443",
                "http://name.example",
                "tcp://name.example:50051",
                "name.example:50051/path",
                "user@name.example:50051",
                "*:50051",
                "a b:50051",
                "nonsense:::",
                "dns:///name.example",
                "dns://name.example:50051",
                "dns:///",
                "unix:",
                "unix://",
                "unix://relative.sock",
                "unix:@abstract",
            )
        ),
        *(
            pytest.param(f"localhost:{port}", f"localhost:{port}: {PORTS}", id=f"port_{port[:9]}")
            for port in ("0", "65536", "99999", "115587", "9" * 30)
        ),
    ],
)
def test_no_address(address: str, said: str) -> None:
    with pytest.raises(BadAddress) as refused:
        check_server_address(address)
    assert str(refused.value) == said


@pytest.mark.parametrize("name", ["generate", "show", "bundle", "health"])
def test_every_command_checks_it(name: str) -> None:
    words = [name, "-", "dir"] if name == "bundle" else [name, "-"] if name != "health" else [name]
    result = CliRunner().invoke(main, [*words, "--server", "http://127.0.0.1:1"], input=b"x")
    assert result.exit_code == 2
    assert "'--server': http://127.0.0.1:1 is not HOST:PORT" in result.output


# --- flags about a connection -------------------------------------------------------------


@pytest.mark.parametrize("name", ["generate", "show", "bundle"])
@pytest.mark.parametrize("flag", ["--tls", "--timeout", "--tls-ca", "--tls-cert", "--tls-key"])
def test_they_go_with_a_server(name: str, flag: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    values = {"--tls": [], "--timeout": ["30"]}.get(flag, [str(tmp_path / "file")])
    directory = [tmp_path / "b"] if name == "bundle" else []
    result = command(name, *directory, flag, *values)
    assert result.exit_code == 2
    assert f"{flag} goes with --server" in result.output
    assert not (tmp_path / "b").exists()


DER = bytes.fromhex("3082010a02820101")


@pytest.mark.parametrize(
    "contents",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"hello\n", id="text"),
        pytest.param(DER, id="der"),
        pytest.param(
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", id="broken"
        ),
        pytest.param("{key}", id="a_key"),
    ],
)
@pytest.mark.parametrize("flag", ["--tls-ca", "--tls-cert", "--tls-key"])
def test_a_file_that_is_no_pem(flag: str, contents: bytes | str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    good = authority.issue("client")
    other = authority.issue("other")
    bad = tmp_path / "bad.pem"
    bad.write_bytes(other.key.read_bytes() if isinstance(contents, str) else contents)
    files = {"--tls-ca": authority.ca, "--tls-cert": good.cert, "--tls-key": good.key} | {flag: bad}
    words = (word for item in files.items() for word in item)

    result = command("generate", "--server", "127.0.0.1:1", *words)

    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    if flag == "--tls-ca":
        assert line.startswith(f"specgen: --tls-ca: {bad} has no certificate in PEM: ")
    else:
        assert line.startswith("specgen: --tls-cert, --tls-key: ")
        assert str(bad) in line


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mutual_tls"])
def test_a_server_that_speaks_tls(mutual: bool, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own = authority.issue("server")
    flags = ["--tls-cert", own.cert, "--tls-key", own.key]
    if mutual:
        flags += ["--tls-client-ca", authority.ca]
    with running_server("127.0.0.1:0", tmp_path / "log", *map(str, flags)) as server:
        result = command("generate", "--server", server.address, "--timeout", "5")
    assert result.exit_code == 3
    assert result.stderr.startswith(f"specgen: no answer from {server.address}: ")
    assert result.stderr.endswith("; it speaks TLS: try --tls\n")


# --- servers that answer anything ---------------------------------------------------------

DRIVES = "\x1b]0;pwned\x07\x1b[31m\x9b2J\u202e\r\n2nd\u2028line\0"
SPEC = json.loads(generate(REQUEST, SpecOptions(rootless=False, terminal=False)).json)


class Hostile:
    """A server that answers whatever it was told to."""

    def __init__(self) -> None:
        self.address = ""
        self.answer = SpecJSON()
        self.abort: tuple[grpc.StatusCode, str] | None = None
        self.trailers: tuple[tuple[str, bytes], ...] = ()

    def generate(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata(self.trailers)
        if self.abort:
            context.abort(*self.abort)
        return self.answer.SerializeToString()


@pytest.fixture
def hostile() -> Iterator[Hostile]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    found = Hostile()
    methods = {"GenerateSpec": grpc.unary_unary_rpc_method_handler(found.generate)}
    service = grpc.method_handlers_generic_handler("specgen.v1.SpecService", methods)
    server.add_generic_rpc_handlers((service,))
    found.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield found
    finally:
        server.stop(None).wait()


def printed(result: Result) -> str:
    """Return all that was printed, once nothing in it drives a terminal."""
    text = result.output
    assert [char for char in text if not char.isprintable() and char != "\n"] == []
    return text


@pytest.mark.parametrize("name", ["generate", "show", "bundle"])
@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    ],
    ids=lambda code: code.name,
)
def test_details_of_an_error(
    code: grpc.StatusCode, name: str, hostile: Hostile, tmp_path: Path
) -> None:
    hostile.abort = (code, DRIVES)
    directory = [tmp_path / "b"] if name == "bundle" else []
    result = command(name, *directory, "--server", hostile.address)
    assert result.exit_code in (1, 3)
    assert "\\x1b]0;pwned\\x07" in printed(result)


def test_violations(hostile: Hostile) -> None:
    from google.protobuf import any_pb2
    from google.rpc import error_details_pb2, status_pb2

    details = any_pb2.Any()
    found = error_details_pb2.BadRequest.FieldViolation(field=DRIVES, description=DRIVES)
    details.Pack(error_details_pb2.BadRequest(field_violations=[found]))
    status = status_pb2.Status(code=3, message="1 violation", details=[details])
    hostile.abort = (grpc.StatusCode.INVALID_ARGUMENT, "1 violation")
    hostile.trailers = (("grpc-status-details-bin", status.SerializeToString()),)
    result = command("generate", "--server", hostile.address)
    assert result.exit_code == 1
    assert printed(result).count("\\x1b]0;pwned\\x07") == 2


@pytest.mark.parametrize("name", ["generate", "show", "bundle"])
def test_text_of_an_answer(name: str, hostile: Hostile, tmp_path: Path) -> None:
    spec = SPEC | {"hostname": DRIVES, "annotations": {DRIVES: DRIVES}}
    spec["linux"] = spec["linux"] | {"namespaces": [{"type": DRIVES}]}
    spec["process"] = spec["process"] | {"args": [DRIVES], "env": [f"A={DRIVES}"]}
    hostile.answer = SpecJSON(
        json=json.dumps(spec),
        diagnostics=[{"code": DRIVES, "field": DRIVES, "message": DRIVES}],
        output_paths=[{"path": DRIVES, "bundle_path": DRIVES}],
        root_entries=[{"bundle_path": "root", "mode": 0o755, "kind": "directory"}],
    )
    directory = [tmp_path / "b"] if name == "bundle" else []
    result = command(name, *directory, "--server", hostile.address)
    assert result.exit_code == 0
    assert "\\x1b]0;pwned\\x07" in printed(result)


def test_json_on_a_terminal(hostile: Hostile, tmp_path: Path) -> None:
    """JSON need not escape what is above ASCII, and some of it drives terminals."""
    spec = SPEC | {"hostname": "\x9b2J\u202e\x7f"}
    hostile.answer = SpecJSON(json=json.dumps(spec, ensure_ascii=False))
    (tmp_path / "r.pb").write_bytes(REQUEST.SerializeToString())
    words = f"{SPECGEN} generate {tmp_path / 'r.pb'} --server {hostile.address} 2>/dev/null"
    on_terminal = subprocess.run(
        ("script", "-qec", words, "/dev/null"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
    )
    text = on_terminal.stdout.decode()
    assert "\\x9b2J\\u202e\\x7f" in text
    assert not set(text) & set("\x9b\u202e\x7f")
    piped = subprocess.run(words, shell=True, capture_output=True, timeout=30)
    assert piped.stdout.decode() == f"{hostile.answer.json}\n"


def changed(**parts: Any) -> str:
    return json.dumps(SPEC | parts)


def with_mount(**parts: Any) -> str:
    mount = {"destination": "/q", "type": "none", "source": "/etc", "options": []} | parts
    return changed(mounts=[*SPEC["mounts"], mount])


def with_ids(**parts: Any) -> str:
    ids = {"containerID": 0, "hostID": 0, "size": 2000}
    linux = SPEC["linux"] | {"namespaces": [{"type": "user"}]}
    return changed(linux=linux | {"uidMappings": [ids | parts], "gidMappings": [ids]})


ODD = {
    "empty": "",
    "text": "hello",
    "null": "null",
    "list": "[]",
    "object": "{}",
    "number": "1e999",
    "nan": '{"ociVersion": NaN}',
    "deep": "[" * 100_000,
    "deep_object": '{"a":' * 100_000,
    "deep_annotation": changed(annotations={"a": "b"}).replace('"b"', "[" * 5000 + "]" * 5000),
    "escapes": "\x1b[31m",
    "nul": "\0",
    "trailing": json.dumps(SPEC) + "{}",
    "mode_text": with_mount(type="tmpfs", options=["mode=xyz"]),
    "mode_negative": with_mount(type="tmpfs", options=["mode=-1"]),
    "mode_huge": with_mount(type="tmpfs", options=["mode=" + "7" * 25]),
    "mode_prefixed": with_mount(type="tmpfs", options=["mode=0o755"]),
    "options_numbers": with_mount(options=[1, 2]),
    "dotdot": with_mount(destination="/../../x"),
    "scratch_dotdot": with_mount(source="scratch/../../../x"),
    "scratch_itself": with_mount(source="scratch/"),
    "relative": with_mount(destination="q"),
    "no_destination": with_mount(destination=""),
    "nul_destination": with_mount(destination="/a\0b"),
    "nul_source": with_mount(source="/a\0b"),
    "surrogate": with_mount(destination="/a\ud800"),
    "surrogate_source": with_mount(source="/\udfff"),
    "surrogate_pair_reversed": with_mount(destination="/\udc00\ud800"),
    "long": with_mount(destination="/" + "a/" * 2100 + "a"),
    "long_name": with_mount(destination="/" + "a" * 300),
    "many_mounts": changed(mounts=[{"destination": "/q"}] * 1000),
    "cwd_relative": changed(process=SPEC["process"] | {"cwd": "x"}),
    "cwd_empty": changed(process=SPEC["process"] | {"cwd": ""}),
    "cwd_nul": changed(process=SPEC["process"] | {"cwd": "/\0"}),
    "uid_many_digits": changed(process=SPEC["process"] | {"user": {"uid": -1, "gid": 1}}).replace(
        "-1", "9" * 5000
    ),
    "cwd_number": changed(process=SPEC["process"] | {"cwd": 2**70}),
    "root_of_the_host": changed(root={"path": "/", "readonly": False}),
    "root_elsewhere": changed(root={"path": "../x", "readonly": False}),
    "host_id_huge": with_ids(hostID=2**70),
    "host_id_64_bits": with_ids(hostID=2**63),
    "host_id_32_bits": with_ids(hostID=2**32 - 1),
    "host_id_negative": with_ids(hostID=-1001),
    "host_id_text": with_ids(hostID="0"),
    "host_id_fraction": with_ids(hostID=0.5),
    "size_negative": with_ids(size=-1),
    "size_zero": with_ids(size=0),
    "size_huge": with_ids(size=2**64),
    "container_id_negative": with_ids(containerID=-1),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["bundle", "generate", "show"])
def test_odd_specs(name: str, odd: str, hostile: Hostile, tmp_path: Path) -> None:
    """None ends in a traceback, or in anything outside DIR; the bundle is refused."""
    with contextlib.suppress(UnicodeEncodeError):
        hostile.answer = SpecJSON(json=ODD[odd])
    directory = [tmp_path / "b"] if name == "bundle" else []
    result = command(name, *directory, "--server", hostile.address, "--id-mappings", "none")
    assert result.exit_code in ((1, 2, 3) if name == "bundle" else (0, 3))
    if result.exit_code:
        assert len(printed(result).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_any_size_are_shown(hostile: Hostile) -> None:
    process = SPEC["process"] | {"user": {"uid": 2**70, "gid": -5}}
    hostile.answer = SpecJSON(json=changed(process=process))
    result = command("show", "--server", hostile.address)
    assert result.exit_code == 0
    assert f"uid {2**70}, gid -5" in printed(result)
