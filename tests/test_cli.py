"""The ``specgen`` command, as a person meets it: files, output, errors, exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, text_format
from support import RunningServer, build_request, golden_case, large_request

from specgen_client.request_files import read_request_file
from specgen_core import IdMapping, SpecOptions
from specgen_core.answer import generate
from tvix.build.protos.build_pb2 import BuildRequest

SPECGEN = Path(sys.executable).with_name("specgen")
SECONDS = 30

DONE, REFUSED, USAGE, NO_ANSWER, INTERRUPTED = 0, 1, 2, 3, 130

REQUEST = golden_case("three_node_kinds").request
SPEC = generate(REQUEST, SpecOptions()).json.encode()

FORMATS = {
    "binary": BuildRequest.SerializeToString(REQUEST),
    "json": json_format.MessageToJson(REQUEST).encode(),
    "text": text_format.MessageToBytes(REQUEST),
}


def specgen(*args: str | Path, **kwargs: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end; whatever it says, no traceback is in it."""
    done = subprocess.run(
        [SPECGEN, *args],
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE} | kwargs,
        stderr=subprocess.PIPE,
        timeout=SECONDS,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    path = tmp_path / "request.binpb"
    path.write_bytes(FORMATS["binary"])
    return path


def said(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    """Return the lines on standard error, but for warnings."""
    lines = done.stderr.decode().splitlines()
    return [line for line in lines if not line.startswith("specgen: warning: ")]


# --- what a request may be written in -------------------------------------------------


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        pytest.param("r.pb", "binary", id="pb"),
        pytest.param("r.binpb", "binary", id="binpb"),
        pytest.param("r.bin", "binary", id="bin"),
        pytest.param("r.json", "json", id="json"),
        pytest.param("r.JSON", "json", id="ending_in_capitals"),
        pytest.param("r.txtpb", "text", id="txtpb"),
        pytest.param("r.textproto", "text", id="textproto"),
        pytest.param("r.pbtxt", "text", id="pbtxt"),
        pytest.param("r", "binary", id="no_ending_binary"),
        pytest.param("r", "json", id="no_ending_json"),
        pytest.param("r.drv", "json", id="unknown_ending"),
    ],
)
def test_format_by_ending(tmp_path: Path, name: str, format_: str) -> None:
    file = tmp_path / name
    file.write_bytes(FORMATS[format_])

    assert read_request_file(str(file)) == REQUEST


@pytest.mark.parametrize("format_", list(FORMATS))
def test_flag_goes_before_ending(tmp_path: Path, format_: str) -> None:
    file = tmp_path / ("request.json" if format_ != "json" else "request.pb")
    file.write_bytes(FORMATS[format_])

    done = specgen("generate", file, "--format", format_)

    assert (done.returncode, done.stdout) == (DONE, SPEC + b"\n")


@pytest.mark.parametrize(
    ("format_", "flags"),
    [
        pytest.param("binary", [], id="binary"),
        pytest.param("json", [], id="json"),
        pytest.param("text", ["--format", "text"], id="text"),
    ],
)
def test_standard_input(format_: str, flags: list[str]) -> None:
    done = specgen("generate", "-", *flags, stdin=None, input=FORMATS[format_])

    assert (done.returncode, done.stdout) == (DONE, SPEC + b"\n")


@pytest.mark.parametrize(
    ("name", "contents", "sentence"),
    [
        pytest.param(
            "none.json", None, "cannot read {file}: No such file or directory", id="missing"
        ),
        pytest.param(".", None, "cannot read {file}: Is a directory", id="directory"),
        pytest.param("a.json", b"", "{file} is empty: a BuildRequest is expected", id="empty_json"),
        pytest.param("a.pb", b"", "{file} is empty: a BuildRequest is expected", id="empty_binary"),
        pytest.param("a.txtpb", b" \n", "{file} is empty: a BuildRequest is expected", id="blank"),
        pytest.param(
            "a.pb",
            FORMATS["json"],
            "{file} is not a BuildRequest in binary protobuf (--format ",
            id="json_named_binary",
        ),
        pytest.param(
            "a.json",
            FORMATS["binary"],
            "{file} is not a BuildRequest in ProtoJSON: ",
            id="binary_named_json",
        ),
        pytest.param(
            "a.json",
            FORMATS["text"],
            "{file} is not a BuildRequest in ProtoJSON: ",
            id="text_named_json",
        ),
        pytest.param(
            "a.txtpb",
            FORMATS["binary"],
            "{file} is not a BuildRequest in protobuf text format: ",
            id="binary_named_text",
        ),
        pytest.param(
            "a.json",
            b'{"nonsense": 1}',
            '{file} is not a BuildRequest in ProtoJSON: Message type "tvix.build.v1.BuildRequest" '
            'has no field named "nonsense"',
            id="unknown_field",
        ),
        pytest.param(
            "a.json",
            b'{"commandArgs": ["\\ud800"]}',
            "{file} is not a BuildRequest in ProtoJSON: ",
            id="surrogate",
        ),
        pytest.param(
            "a.json", b"[" * 100_000, "{file} is not a BuildRequest in ProtoJSON: ", id="deep"
        ),
        pytest.param(
            "a.json", b"null", "{file} is not a BuildRequest in ProtoJSON: ", id="json_null"
        ),
        pytest.param(
            "a.json",
            b"[]",
            "{file} is not a BuildRequest in ProtoJSON: it is not a JSON object (--format ",
            id="json_list",
        ),
        pytest.param(
            "a.json",
            b' ""',
            "{file} is not a BuildRequest in ProtoJSON: it is not a JSON object (--format ",
            id="json_string",
        ),
        pytest.param(
            "a.json",
            b"\xef\xbb\xbf{}",
            "{file} is not a BuildRequest in ProtoJSON: Failed to load JSON: Unexpected UTF-8 BOM",
            id="json_bom",
        ),
        pytest.param(
            "a.json",
            b'{"workingDir": "\xff"}',
            "{file} is not a BuildRequest in ProtoJSON: it is not UTF-8 (--format ",
            id="json_not_utf8",
        ),
        pytest.param(
            "a.txtpb",
            b'working_dir: "\xff"',
            "{file} is not a BuildRequest in protobuf text format: it is not UTF-8 (--format ",
            id="text_file_not_utf8",
        ),
        pytest.param(
            "a.txtpb",
            b'command_args: "\\377"',
            "{file} is not a BuildRequest in protobuf text format: ",
            id="text_not_utf8",
        ),
        pytest.param(
            "a.pb",
            b"\x1a\x01\xff",
            "{file} is not a BuildRequest in binary protobuf (--format ",
            id="string_not_utf8",
        ),
    ],
)
def test_unreadable_file(tmp_path: Path, name: str, contents: bytes | None, sentence: str) -> None:
    file = tmp_path / name
    if contents is not None:
        file.write_bytes(contents)

    done = specgen("generate", file)

    [line] = said(done)
    assert line.startswith(f"specgen: {sentence.format(file=file)}")
    assert (done.returncode, done.stdout) == (USAGE, b"")


def test_empty_standard_input() -> None:
    done = specgen("generate", "-")

    assert done.returncode == USAGE
    assert said(done) == ["specgen: standard input is empty: a BuildRequest is expected"]


def test_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    done = specgen("generate", os.fsdecode(os.fsencode(tmp_path) + b"/\xff.json"))

    assert done.returncode == USAGE
    assert len(said(done)) == 1


# --- generate -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        pytest.param([], SpecOptions(), id="defaults"),
        pytest.param(["--rootless"], SpecOptions(), id="rootless"),
        pytest.param(["--rootful"], SpecOptions(rootless=False), id="rootful"),
        pytest.param(["--no-terminal"], SpecOptions(terminal=False), id="no_terminal"),
        pytest.param(
            ["--no-cgroup-namespace"],
            SpecOptions(cgroup_namespace=False),
            id="no_cgroup_namespace",
        ),
        pytest.param(
            ["--sandbox-shell", "/bin/büsh"],
            SpecOptions(sandbox_shell="/bin/büsh"),
            id="sandbox_shell",
        ),
        pytest.param(
            ["--uid-mapping", "0:1000:1", "--uid-mapping", "1:5000:9", "--gid-mapping", "0:1:2"],
            SpecOptions(
                uid_mappings=(IdMapping(0, 1000, 1), IdMapping(1, 5000, 9)),
                gid_mappings=(IdMapping(0, 1, 2),),
            ),
            id="mappings",
        ),
    ],
)
@pytest.mark.parametrize("by_server", [False, True], ids=["in_process", "server"])
def test_options(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    flags: list[str],
    options: SpecOptions,
    by_server: bool,
) -> None:
    build = golden_case("network_bin_sh_ro_paths").request
    file = tmp_path / "request.pb"
    file.write_bytes(build.SerializeToString())
    if by_server:
        flags = [*flags, "--server", request.getfixturevalue("server").address]

    done = specgen("generate", file, *flags)

    answer = generate(build, options)
    assert done.returncode == DONE
    assert done.stdout == answer.json.encode() + b"\n"
    assert done.stderr.decode().splitlines() == [
        f"specgen: warning: {found.field}: {found.message} [{found.code}]"
        for found in answer.diagnostics
    ]


def test_same_bytes_by_a_server_on_a_unix_socket(
    unix_server: RunningServer, request_file: Path
) -> None:
    done = specgen("generate", request_file, "--server", unix_server.address)

    assert (done.returncode, done.stdout) == (DONE, SPEC + b"\n")


def test_warnings_go_to_standard_error(request_file: Path) -> None:
    done = specgen("generate", request_file)

    lines = done.stderr.decode().splitlines()
    assert any(line.endswith(" [needs-terminal]") for line in lines)
    assert any(line.endswith(" [symlink-input]") for line in lines)
    assert said(done) == []
    assert json.loads(done.stdout)["ociVersion"] == "1.0.2-dev"


@pytest.mark.parametrize("by_server", [False, True], ids=["in_process", "server"])
def test_refused(tmp_path: Path, request: pytest.FixtureRequest, by_server: bool) -> None:
    file = tmp_path / "request.pb"
    file.write_bytes(build_request(command_args=[], working_dir="/").SerializeToString())
    flags = ["--server", request.getfixturevalue("server").address] if by_server else []

    done = specgen("generate", file, *flags)

    assert (done.returncode, done.stdout) == (REFUSED, b"")
    assert said(done) == [
        "specgen: the request was refused:",
        "  command_args: must name the command to run, is empty",
        '  working_dir: must be relative to the sandbox\'s root, without a leading slash, is "/"',
        '  working_dir: must not have a doubled or trailing slash, is "/"',
    ]


def test_refused_by_a_server_with_more_violations_than_it_sends(
    server: RunningServer, tmp_path: Path
) -> None:
    file = tmp_path / "request.pb"
    file.write_bytes(build_request(command_args=["\0"] * 60).SerializeToString())

    done = specgen("generate", file, "--server", server.address)

    assert (done.returncode, done.stdout) == (REFUSED, b"")
    assert said(done) == [
        "specgen: the request was refused:",
        *(f"  command_args[{i}]: must not contain a NUL byte" for i in range(50)),
        "  and 10 more violations",
    ]


# --- wrong usage ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "word"),
    [
        pytest.param(["generate"], "REQUEST", id="no_request"),
        pytest.param(["nonsense"], "nonsense", id="no_such_command"),
        pytest.param(["generate", "{file}", "--nonsense"], "--nonsense", id="no_such_flag"),
        pytest.param(["generate", "{file}", "--format", "xml"], "xml", id="no_such_format"),
        pytest.param(["generate", "{file}", "{file}"], "argument", id="two_requests"),
        pytest.param(["generate", "{file}", "--uid-mapping", "0:1"], "0:1", id="mapping_of_two"),
        pytest.param(["generate", "{file}", "--uid-mapping", "a:b:c"], "a:b:c", id="no_numbers"),
        pytest.param(
            ["generate", "{file}", "--uid-mapping", "0:0:0"],
            "options.uid_mappings[0].size",
            id="mapping_of_nothing",
        ),
        pytest.param(
            ["generate", "{file}", "--rootful", "--gid-mapping", "0:0:1"],
            "options.gid_mappings",
            id="mapping_for_rootful",
        ),
        pytest.param(
            ["generate", "{file}", "--id-mappings", "auto", "--uid-mapping", "0:0:1"],
            "--id-mappings",
            id="mappings_twice",
        ),
        pytest.param(
            ["generate", "{file}", "--sandbox-shell", ""], "options.sandbox_shell", id="no_shell"
        ),
        pytest.param(
            ["generate", "{file}", "--sandbox-shell", "/\udcff"], "shell", id="shell_not_utf8"
        ),
        pytest.param(
            ["generate", "{file}", "--server", ""], "'--server': it is empty", id="server"
        ),
        pytest.param(
            ["show", "{file}", "--server", "\udcff:1"],
            "'--server': \\udcff:1 is not UTF-8",
            id="server_not_utf8",
        ),
        pytest.param(["health", "--server", " "], "'--server': it is empty", id="health_server"),
        pytest.param(
            ["health", "--server", "\udcff:1"],
            "'--server': \\udcff:1 is not UTF-8",
            id="health_server_not_utf8",
        ),
        pytest.param(["generate", "{file}", "--timeout", "0"], "--timeout", id="timeout_0"),
        pytest.param(["generate", "{file}", "--timeout", "x"], "--timeout", id="timeout_x"),
    ],
)
def test_wrong_usage(request_file: Path, args: list[str], word: str) -> None:
    done = specgen(*(arg.format(file=request_file) for arg in args))

    assert (done.returncode, done.stdout) == (USAGE, b"")
    assert word in done.stderr.decode()


@pytest.mark.parametrize("args", [["--help"], ["generate", "--help"], ["validate", "--help"]])
def test_help(args: list[str]) -> None:
    done = specgen(*args)

    assert (done.returncode, done.stderr) == (DONE, b"")
    assert done.stdout.startswith(b"Usage: specgen")


# --- where the spec goes --------------------------------------------------------------


def test_output_file(tmp_path: Path, request_file: Path) -> None:
    output = tmp_path / "config.json"
    output.write_text("what was there")

    done = specgen("generate", request_file, "-o", output)

    assert (done.returncode, done.stdout) == (DONE, b"")
    assert output.read_bytes() == SPEC
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", request_file.name]


def test_output_file_has_the_mode_of_any_new_file(tmp_path: Path, request_file: Path) -> None:
    output = tmp_path / "config.json"

    assert specgen("generate", request_file, "-o", output, umask=0o027).returncode == DONE

    assert output.stat().st_mode & 0o777 == 0o640


def test_output_file_keeps_the_mode_it_has(tmp_path: Path, request_file: Path) -> None:
    output = tmp_path / "config.json"
    output.touch()
    output.chmod(0o640)

    assert specgen("generate", request_file, "-o", output, umask=0o022).returncode == DONE

    assert output.read_bytes() == SPEC
    assert output.stat().st_mode & 0o7777 == 0o640


def test_output_without_a_name(request_file: Path) -> None:
    done = specgen("generate", request_file, "-o", "")

    assert (done.returncode, done.stdout) == (USAGE, b"")
    assert said(done) == ["specgen: cannot write '': Is a directory"]


@pytest.mark.parametrize("end", ["/", "//", "/."])
def test_output_that_names_a_directory(tmp_path: Path, request_file: Path, end: str) -> None:
    output = f"{tmp_path}/q{end}"

    done = specgen("generate", request_file, "-o", output)

    assert (done.returncode, done.stdout) == (USAGE, b"")
    assert said(done) == [f"specgen: cannot write {output}: Is a directory"]
    assert [found.name for found in tmp_path.iterdir()] == [request_file.name]


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        pytest.param("none/config.json", "No such file or directory", id="no_such_directory"),
        pytest.param(".", "Is a directory", id="directory"),
        pytest.param("request.binpb/config.json", "Not a directory", id="under_a_file"),
        pytest.param("n" * 300, "File name too long", id="name_too_long"),
        pytest.param("/dev/full", "No space left on device", id="full_device"),
    ],
)
def test_unwritable_output(tmp_path: Path, request_file: Path, output: str, sentence: str) -> None:
    path = tmp_path / output

    done = specgen("generate", request_file, "-o", path)

    assert (done.returncode, done.stdout) == (USAGE, b"")
    assert said(done) == [f"specgen: cannot write {path}: {sentence}"]
    assert [found.name for found in tmp_path.iterdir()] == [request_file.name]


def test_output_whole_or_not_at_all(tmp_path: Path) -> None:
    """Where the file cannot be written to its end, the old one is still there, alone."""
    file = tmp_path / "request.pb"
    file.write_bytes(golden_case("real_closure_ogre-1.9.0").request.SerializeToString())
    output = tmp_path / "config.json"
    output.write_text("what was there")
    small_files_only = 'ulimit -f 8; exec "$0" "$@"'

    done = subprocess.run(
        ["/bin/sh", "-c", small_files_only, SPECGEN, "generate", file, "-o", output],
        stderr=subprocess.PIPE,
        timeout=SECONDS,
    )

    assert (done.returncode, said(done)) == (
        USAGE,
        [f"specgen: cannot write {output}: File too large"],
    )
    assert output.read_text() == "what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "request.pb"]


def test_output_stays_where_there_is_no_spec(tmp_path: Path) -> None:
    file = tmp_path / "request.pb"
    file.write_bytes(build_request(command_args=[]).SerializeToString())
    output = tmp_path / "config.json"
    output.write_text("what was there")

    assert specgen("generate", file, "-o", output).returncode == REFUSED

    assert output.read_text() == "what was there"


def test_output_to_a_device(request_file: Path) -> None:
    done = specgen("generate", request_file, "-o", "/dev/stdout")

    assert (done.returncode, done.stdout) == (DONE, SPEC)


@pytest.mark.parametrize("name", ["generate", "show"])
def test_full_standard_output(request_file: Path, name: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = specgen(name, request_file, stdout=full)

    assert done.returncode == USAGE
    assert said(done) == ["specgen: cannot write standard output: No space left on device"]


def test_closed_standard_output(request_file: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" "$@" >&-', SPECGEN, "generate", request_file],
        stderr=subprocess.PIPE,
        timeout=SECONDS,
    )

    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert done.returncode == USAGE


def test_reader_that_leaves(tmp_path: Path) -> None:
    file = tmp_path / "request.pb"
    file.write_bytes(large_request().SerializeToString())  # more than a pipe holds
    reading, writing = os.pipe()
    os.close(reading)

    try:
        done = specgen("generate", file, stdout=writing)
    finally:
        os.close(writing)

    assert (done.returncode, said(done)) == (DONE, [])


# --- validate -------------------------------------------------------------------------


def test_validate(request_file: Path) -> None:
    done = specgen("validate", request_file)

    assert (done.returncode, done.stdout, done.stderr) == (DONE, b"", b"valid\n")


def test_validate_what_cannot_be_read(tmp_path: Path) -> None:
    done = specgen("validate", tmp_path)

    assert (done.returncode, done.stdout) == (USAGE, b"")
    assert said(done) == [f"specgen: cannot read {tmp_path}: Is a directory"]


def test_validate_prints_every_violation(tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.write_text(json.dumps({"commandArgs": ["\0"] * 60, "workingDir": "/a"}))

    done = specgen("validate", file)

    assert (done.returncode, done.stderr) == (REFUSED, b"")
    assert done.stdout.decode().splitlines() == [
        *(f"command_args[{i}]: must not contain a NUL byte" for i in range(60)),
        'working_dir: must be relative to the sandbox\'s root, without a leading slash, is "/a"',
    ]


# --- servers that are not there, or do not answer -------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("127.0.0.1:1", id="tcp"),
        pytest.param("unix:///nonexistent/socket", id="unix"),
        pytest.param("dns:///name.invalid:50051", id="name"),
    ],
)
def test_no_server(request_file: Path, address: str) -> None:
    done = specgen("generate", request_file, "--server", address, "--timeout", "10")

    assert (done.returncode, done.stdout) == (NO_ANSWER, b"")
    [line] = said(done)
    assert line.startswith("specgen: no answer from ")
    assert address in line


def test_silent_server(request_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        done = specgen("generate", request_file, "--server", address, "--timeout", "0.5")

    assert (done.returncode, done.stdout) == (NO_ANSWER, b"")
    [line] = said(done)
    assert line.startswith("specgen: no answer from ")
    assert address in line


# --- Ctrl-C ---------------------------------------------------------------------------


@contextlib.contextmanager
def started(*args: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [SPECGEN, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def interrupted(process: subprocess.Popen[bytes]) -> None:
    """Send Ctrl-C, and see that the command leaves as a shell expects, without a traceback."""
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == INTERRUPTED
    assert stdout == b""
    assert stderr.decode().splitlines() == ["specgen: interrupted"]


def test_interrupted_while_it_reads(tmp_path: Path) -> None:
    fifo = tmp_path / "request.pb"
    os.mkfifo(fifo)
    with started("generate", fifo) as process:
        writing = opened_by_a_reader(fifo)
        time.sleep(0.1)  # it has opened the file; let it come to reading
        try:
            interrupted(process)
        finally:
            os.close(writing)


def opened_by_a_reader(fifo: Path) -> int:
    """Open a FIFO for writing once someone reads it."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):  # ENXIO: nobody there yet
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.01)
    pytest.fail("nobody reads the FIFO")


def test_interrupted_while_it_waits_for_a_server(request_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(SECONDS)
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with started("generate", request_file, "--server", address) as process:
            connection, _ = listening.accept()
            with connection:
                assert connection.recv(1)  # gRPC speaks; nobody answers
                time.sleep(0.1)
                interrupted(process)
