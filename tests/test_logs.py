"""Log lines: one a call, with what an operator looks for, and tracebacks of what is ours."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import grpc
import pytest
from raw_http2 import DATA, connected
from support import build_request, running_server
from test_metrics import of, scrape
from test_workers import wait_until

from specgen.v1.specgen_pb2_grpc import SpecServiceStub
from specgen_client import RequestRefused, SpecClient
from specgen_server.telemetry.log_output import LogOutput
from specgen_server.telemetry.logs import LogFormat, call_lines, configure_logging, name_of
from specgen_server.telemetry.stats import CallRecord


def calls(log: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in lines if line["message"] == "call"]


def test_json_lines(tmp_path: Path) -> None:
    flags = ("--workers", "1", "--log-format", "json")
    with running_server("127.0.0.1:0", tmp_path / "log", *flags) as server:
        with grpc.insecure_channel(server.address) as channel:
            SpecServiceStub(channel).GenerateSpec(
                build_request(), timeout=5, metadata=(("x-request-id", "build-17"),)
            )
        with SpecClient(server.address) as client:
            with pytest.raises(RequestRefused):
                client.generate(build_request(command_args=[]))
            list(client.generate_many([build_request()] * 3))
        wait_until(lambda: len(calls(server.log)) == 3, "three lines")
        named, refused, bulk = calls(server.log)
    assert named["method"] == "GenerateSpec"
    assert named["code"] == "OK"
    assert named["request_id"] == "build-17"
    assert named["request_bytes"] == len(build_request().SerializeToString())
    assert named["response_bytes"] > 2000
    assert named["duration_ms"] > 0
    assert named["peer"].startswith("ipv4:127.0.0.1:")
    assert named["builds"] == 1
    assert named["level"] == "info"
    assert refused["code"] == "INVALID_ARGUMENT"
    assert len(refused["request_id"]) == 16
    assert (bulk["method"], bulk["code"], bulk["builds"]) == ("GenerateSpecs", "OK", 3)


def test_human_lines(tmp_path: Path) -> None:
    with running_server("127.0.0.1:0", tmp_path / "log", "--workers", "1") as server:
        with SpecClient(server.address) as client:
            client.generate(build_request())
        wait_until(lambda: " info: GenerateSpec OK " in server.log.read_text(), "the line")


def test_no_line_a_call_above_level_info(tmp_path: Path) -> None:
    sock = f"unix://{tmp_path}/specgen.sock"
    log = tmp_path / "log"
    with log.open("wb") as stderr, started(sock, stderr, "--log-level", "warning"):
        pass
    (line,) = log.read_text().splitlines()
    assert f"listening on {sock}" in line


@contextlib.contextmanager
def started(sock: str, stderr: int | IO[bytes], *flags: str, **how: Any) -> Iterator[SpecClient]:
    """Run a server whose standard error tells nothing; it ends in order, or the test fails."""
    command = [sys.executable, "-m", "specgen_server", "--listen", sock, *flags]
    process = subprocess.Popen(command, stderr=stderr, **how)
    try:
        with SpecClient(sock, wait_for_ready=True) as client:
            assert client.generate(build_request()).json
            yield client
    finally:
        process.terminate()
        assert process.wait(20) == 0


@pytest.mark.parametrize("kind", ["full", "closed", "all_closed", "reader_left", "nobody_reads"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_standard_error_that_fails_holds_nothing_up(
    tmp_path: Path, unused_address: str, kind: str, workers: str
) -> None:
    reading, writing = os.pipe()
    if kind == "reader_left":
        os.close(reading)
    stderr = os.open("/dev/full", os.O_WRONLY) if kind == "full" else writing
    closed = {"closed": (2,), "all_closed": (0, 1, 2)}.get(kind, ())
    how = {"preexec_fn": lambda: [os.close(fd) for fd in closed]} if closed else {}
    listen = f"unix://{tmp_path}/specgen.sock"
    flags = ("--metrics", unused_address, "--grace", "5")
    if workers == "2":
        flags += ("--listen", "127.0.0.1:0", "--workers", "2")
    try:
        with started(listen, stderr, *flags, **how) as client:
            for _ in range(1000):  # lines for three times what a pipe holds
                client.generate(build_request())

            def counted() -> bool:
                samples = scrape(unused_address)
                labels = {"method": "GenerateSpec", "code": "OK"}
                dropped = of(samples, "specgen_log_lines_dropped_total")
                return of(samples, "specgen_calls_total", **labels) == 1001 and (
                    dropped > 1001 if kind in ("full", "reader_left") else dropped == 0
                )

            wait_until(counted, "all calls and lines counted")
            assert client.is_serving()
    finally:
        for fd in {reading, writing, stderr} - ({reading} if kind == "reader_left" else set()):
            os.close(fd)


def test_dropped_lines_are_counted_and_told_of(caplog: pytest.LogCaptureFixture) -> None:
    reading, writing = os.pipe()
    output = LogOutput(writing)
    line = b"x" * 999 + b"\n"
    lines = 2000
    for _ in range(lines):  # the pipe takes 64 KiB of them, the queue 1 MiB
        output.write(line)
    dropped = output.take_dropped()
    assert 800 < dropped < 1000
    assert output.take_dropped() == 0
    read = b""
    while len(read) < (lines - dropped) * len(line):
        read += os.read(reading, 65536)
    output.flush()
    assert read == line * (lines - dropped)
    assert [record.getMessage() for record in caplog.records] == [
        f"{dropped} log lines were dropped: they could not be written"
    ]
    os.close(reading)


def test_what_others_print_to_standard_error_holds_nothing_up() -> None:
    """Lines of gRPC's core, say: it writes them to descriptor 2, and waits."""
    program = (
        "import os\n"
        "from specgen_server.telemetry.log_output import standard_error\n"
        "output = standard_error(alone=True)\n"
        "for i in range(300_000): os.write(2, b'from \\x1b below\\n')\n"
        "print('not held up', flush=True)\n"
        "input()\n"
        "output.flush(20)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"not held up\n"
        _, stderr = process.communicate(b"\n", timeout=30)
    dropped = sum(map(int, re.findall(rb"^(\d+) log lines were dropped", stderr, re.MULTILINE)))
    assert dropped > 0
    assert stderr.count(b"from \\x1b below\n") + dropped == 300_000


def human(**fields: Any) -> str:
    (line,) = call_lines([CallRecord("GenerateSpec", peer="unix:", **fields)], "human").splitlines()
    return line.partition("builds=0 ")[2]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        pytest.param({"request_id": "b-1"}, "peer=unix: request_id=b-1", id="plain"),
        pytest.param(
            {"request_id": "b", "caller": "x caller2=admin"},
            'peer=unix: caller="x caller2=admin" request_id=b',
            id="several_words",
        ),
        pytest.param(
            {"request_id": 'a" b'}, 'peer=unix: request_id="a\\" b"', id="a_quotation_mark"
        ),
        pytest.param(
            {"field": "inputs[0].file.name", "request_id": "b"},
            "field=inputs[0].file.name peer=unix: request_id=b",
            id="field",
        ),
    ],
)
def test_a_name_cannot_pass_for_other_parts_of_its_line(fields: dict[str, str], line: str) -> None:
    assert human(**fields) == line


@pytest.mark.parametrize(
    ("text", "name"),
    [
        pytest.param("a\nb", "a\\nb", id="newline"),
        pytest.param("a\x1b[2Jb", "a\\x1b[2Jb", id="escape"),
        pytest.param("a\x00b", "a\\x00b", id="nul"),
        pytest.param("\u202e rtl", "\\u202e rtl", id="direction"),
        pytest.param("é\u2028x", "é\\u2028x", id="line_separator"),
        pytest.param("a\x9b2J", "a\\x9b2J", id="c1"),
        pytest.param("x" * 7000, "x" * 128, id="long"),
    ],
)
def test_name_of(text: str, name: str) -> None:
    assert name_of(text) == name


def logged(record: logging.LogRecord, format_: LogFormat) -> str:
    reading, writing = os.pipe()
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        output = LogOutput(writing)
        configure_logging(format_, "info", output)
        root.handle(record)
        output.flush()
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    text = os.read(reading, 65536).decode()
    os.close(reading)
    return text


@pytest.mark.parametrize("format_", ["human", "json"])
def test_messages_and_tracebacks_are_printable(format_: LogFormat) -> None:
    try:
        raise ValueError("of a request: \x1b[2J\u202e")
    except ValueError as error:
        record = logging.LogRecord(
            "x", logging.ERROR, "x.py", 1, "failed: \x1b\u202e", None, (ValueError, error, None)
        )
    text = logged(record, format_)
    assert "\x1b" not in text
    assert "\u202e" not in text
    escaped = text if format_ == "human" else json.loads(text)["message"]
    assert "failed: \\x1b\\u202e" in escaped
    traceback = text if format_ == "human" else json.loads(text)["traceback"]
    assert "\nValueError: of a request: \\x1b[2J\\u202e" in "\n" + traceback


def test_a_refused_call_names_its_first_field(tmp_path: Path) -> None:
    flags = ("--workers", "1", "--log-format", "json")
    with running_server("127.0.0.1:0", tmp_path / "log", *flags) as server:
        with SpecClient(server.address) as client, pytest.raises(RequestRefused):
            client.generate(build_request(working_dir="a/", command_args=[]))
        wait_until(lambda: len(calls(server.log)) == 1, "the line")
        (line,) = calls(server.log)
    assert (line["code"], line["field"]) == ("INVALID_ARGUMENT", "command_args")


@pytest.mark.parametrize(
    ("sent", "logged_as"),
    [
        pytest.param(b"a\x1b[2Jb", "a\\x1b[2Jb", id="escape"),
        pytest.param(b"a\nINJECTED line", "a\\nINJECTED line", id="newline"),
        pytest.param(b"a\r\nX", "a\\r\\nX", id="carriage_return"),
        pytest.param(b"a\x00b", "a\\x00b", id="nul"),
        pytest.param(b"\xc3\xa9\xe2\x80\xa8x", "\u00e9\\u2028x", id="line_separator"),
        pytest.param(b"\xe2\x80\xae rtl", "\\u202e rtl", id="direction"),
    ],
)
def test_a_request_id_that_no_grpc_client_sends(
    tmp_path: Path, way: str, sent: bytes, logged_as: str
) -> None:
    """HTTP/2 forbids these bytes in a header, and gRPC's server lets them in."""
    flags = ("--workers", "1", "--log-format", "json", way)
    with (
        running_server("127.0.0.1:0", tmp_path / "log", *flags) as server,
        connected(server.address) as connection,
    ):
        connection.call(GENERATE, build_request().SerializeToString(), ("x-request-id", sent))
        while connection.read()[0] != DATA:
            pass
        wait_until(lambda: calls(server.log) != [], "the line")
        (line,) = calls(server.log)
    assert (line["code"], line["request_id"]) == ("OK", logged_as)


GENERATE = "/specgen.v1.SpecService/GenerateSpec"
