"""The ``specgen`` command and its user: help, completion, output, closed streams, progress."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from support import build_request, golden_case

from specgen_client.cli import main
from specgen_core import SpecOptions
from specgen_core.answer import generate
from tvix.castore.protos.castore_pb2 import Node

SPECGEN = Path(sys.executable).with_name("specgen")
SECONDS = 30
REQUEST = golden_case("three_node_kinds").request
SPEC = generate(REQUEST, SpecOptions()).json
COMMANDS = sorted(main.commands)


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    path = tmp_path / "request.pb"
    path.write_bytes(REQUEST.SerializeToString())
    return path


# --- help ---------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_help(name: str | None, flag: str) -> None:
    result = CliRunner().invoke(main, [*([name] if name else []), flag])
    assert result.exit_code == 0
    assert result.output.startswith("Usage: ")


def flags() -> Iterator[tuple[str, click.Option]]:
    for name, command in main.commands.items():
        for param in command.params:
            if isinstance(param, click.Option):
                yield name, param


@pytest.mark.parametrize(
    "flag", [pytest.param(flag, id=f"{name}{flag.opts[0]}") for name, flag in flags()]
)
def test_every_flag_has_help(flag: click.Option) -> None:
    assert flag.help
    assert flag.help[0].isupper() or flag.help.startswith("auto: ")


def help_of(name: str) -> str:
    result = CliRunner().invoke(main, [name, "--help"], terminal_width=1000)
    return " ".join(result.output.split())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("generate", "gets a terminal. [default: terminal; with --server, the server's own]"),
        ("show", "gets a terminal. [default: terminal; with --server, the server's own]"),
        ("bundle", "gets a terminal. [default: terminal, if this is run on one]"),
        ("generate", "builds run on this host. [default: none; with --server, the server's own]"),
        ("bundle", "builds run on this host. [default: auto, unless a mapping is given]"),
        (
            "bundle",
            "cgroup namespace. [default: cgroup-namespace; with --server, the server's own]",
        ),
        ("generate", "or dns:///NAME:PORT. [default: none, the spec is made in process]"),
        ("health", "or dns:///NAME:PORT. [default: 127.0.0.1:50051]"),
        ("generate", "Seconds to wait for the server. [default: 30]"),
        ("generate", "- is standard output. [default: -]"),
    ],
)
def test_the_defaults_that_hold(name: str, said: str) -> None:
    assert said in help_of(name)


# --- completion ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["generate", "validate", "show", "bundle"])
def test_completion_offers_files_for_a_request(name: str) -> None:
    words = {"COMP_WORDS": f"specgen {name} ", "COMP_CWORD": "2"}
    done = subprocess.run(
        [SPECGEN],
        env=os.environ | words | {"_SPECGEN_COMPLETE": "bash_complete"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.stdout == "file,\n"


def test_completion_as_the_readme_has_it(tmp_path: Path) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    [command] = [line.strip() for line in readme.splitlines() if "_SPECGEN_COMPLETE" in line]
    (tmp_path / "request.json").touch()
    script = f"""
    cd "$1"; {command}
    COMP_WORDS=(specgen generate req) COMP_CWORD=2
    _specgen_completion specgen
    complete -p specgen
    """
    path = f"{SPECGEN.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script, "bash", tmp_path],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert "-F _specgen_completion specgen" in done.stdout, done.stderr


# --- output -------------------------------------------------------------------------------


def test_a_dash_is_standard_output(
    request_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["generate", str(request_file), "-o", "-"])
    assert (result.exit_code, result.stdout) == (0, f"{SPEC}\n")
    assert [path.name for path in tmp_path.iterdir()] == [request_file.name]


@pytest.mark.parametrize(
    ("target", "there"),
    [
        pytest.param("dir/config.json", True, id="relative"),
        pytest.param("{path}/dir/config.json", True, id="absolute"),
        pytest.param("second", True, id="two_links"),
        pytest.param("dir/new.json", False, id="dangling"),
    ],
)
def test_a_link_stays(target: str, there: bool, request_file: Path, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "second").symlink_to("dir/config.json")
    (tmp_path / "dir/config.json").write_text("what was there")
    (tmp_path / "dir/config.json").chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(target.format(path=tmp_path))

    result = CliRunner().invoke(main, ["generate", str(request_file), "-o", str(link)])

    assert result.exit_code == 0, result.output
    assert link.is_symlink()
    assert link.read_text() == SPEC
    if there:
        assert (tmp_path / "dir/config.json").stat().st_mode & 0o777 == 0o640
    assert len(list((tmp_path / "dir").iterdir())) == (1 if there else 2)


@pytest.mark.parametrize(
    ("owner", "mode", "written"),
    [
        pytest.param(4242, 0o1777, False, id="somebodys_in_tmp"),
        pytest.param(0, 0o1777, True, id="ours_in_tmp"),
        pytest.param(4242, 0o755, True, id="somebodys_in_our_directory"),
    ],
)
def test_whose_link_is_followed(
    owner: int, mode: int, written: bool, request_file: Path, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("no root")
    (tmp_path / "precious").write_text("precious")
    public = tmp_path / "public"
    public.mkdir()
    public.chmod(mode)
    (public / "link").symlink_to(tmp_path / "precious")
    os.chown(public / "link", owner, owner, follow_symlinks=False)

    result = CliRunner().invoke(main, ["generate", str(request_file), "-o", str(public / "link")])

    assert (tmp_path / "precious").read_text() == (SPEC if written else "precious")
    if not written:
        assert result.exit_code == 2
        assert result.stderr.endswith(f"cannot write {public / 'link'}: Permission denied\n")


def test_a_loop_of_links(request_file: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    result = CliRunner().invoke(main, ["generate", str(request_file), "-o", str(tmp_path / "loop")])
    assert result.exit_code == 2
    assert (tmp_path / "loop").is_symlink()


# --- closed streams -----------------------------------------------------------------------


@pytest.mark.parametrize("closed", ["<&-", "<&- >&-", "<&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("words", ["generate -", "validate -", "show -", "bundle - b"])
def test_closed_streams(words: str, closed: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f'"$0" {words} {closed}', SPECGEN],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    if "2>&-" not in closed:
        assert done.stderr == "specgen: cannot read standard input: it is closed\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("closed", ["<&-", "<&- 2>&-"])
def test_a_bundle_without_standard_input(closed: str, request_file: Path, tmp_path: Path) -> None:
    command = f'"$0" bundle "$1" b --inputs "$2" --copy-inputs {closed}'
    (tmp_path / "inputs/dir").mkdir(parents=True)
    (tmp_path / "inputs/dir/file").write_text("contents")
    request = build_request(inputs=[Node(directory={"name": b"dir", "digest": b"d" * 32})])
    request_file.write_bytes(request.SerializeToString())
    done = subprocess.run(
        ["/bin/sh", "-c", command, SPECGEN, request_file, tmp_path / "inputs"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "b/inputs/dir/file").read_text() == "contents"
    assert (tmp_path / "b/config.json").read_text().startswith("{")


# --- progress -----------------------------------------------------------------------------


def test_copying_is_shown_on_a_terminal(request_file: Path, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    (inputs / "dir").mkdir(parents=True)
    for i in range(50):
        (inputs / "dir" / str(i)).write_bytes(b"x" * 1000)
    request = build_request(inputs=[Node(directory={"name": b"dir", "digest": b"d" * 32})])
    request_file.write_bytes(request.SerializeToString())
    words = [SPECGEN, "bundle", request_file, tmp_path / "b", "--inputs", inputs, "--copy-inputs"]
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs, timeout=SECONDS
        )
        shown = os.read(ours, 65_536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0
    assert shown.startswith("\r\x1b[Kcopied 1 files, 0.0 MB")
    piped = subprocess.run([*words, "--force"], stdin=subprocess.DEVNULL, capture_output=True)
    assert b"copied" not in piped.stderr
