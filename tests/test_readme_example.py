"""README's real build, run as it stands there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from blake3 import blake3
from runtimes import EVERY_WAY, RUNC, Mode, Runtime, new_lab, require_runtime, run, specgen
from support import require

from specgen_client.request_files import read_request_file
from specgen_core import SpecOptions, diagnose, read_request
from tvix.castore.protos.castore_pb2 import Directory

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "hello.textproto"
BUNDLE = Path("/tmp/hello")


def commands() -> str:
    readme = (ROOT / "README.md").read_text()
    section = re.search(r"^## A real build\n.*?^```(?:sh)?\n(.*?)^```", readme, re.M | re.S)
    assert section, "README.md has no section 'A real build' with a block of commands"
    return section[1]


@pytest.mark.parametrize("terminal", [False, True], ids=["no_terminal", "terminal"])
def test_real_build(terminal: bool, tmp_path: Path) -> None:
    require_runtime(RUNC, Mode.USERNS)
    require(Path("/bin/busybox").exists(), "/bin/busybox")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    text = commands()
    assert str(BUNDLE) in text
    kept = BUNDLE.exists()  # somebody's who tried it
    if kept:
        text = text.replace(str(BUNDLE), str(tmp_path / "hello"))
    command = ["sh", "-e", "-c", text]
    if terminal:
        (tmp_path / "commands").write_text(text)
        command = ["script", "-qec", "sh -e commands", "/dev/null"]
    try:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            input=b"",  # a pipe: a runtime may change the owner of /dev/null
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
        )
    finally:
        if not kept:
            shutil.rmtree(BUNDLE, ignore_errors=True)
    output = done.stdout.decode().replace("\r\n", "\n")
    assert done.returncode == 0, output
    assert "warning" not in output
    assert "building hello 1.0 as uid 1000\n" in output
    assert output.endswith("Hello, world!\n")


@pytest.mark.parametrize(("runtime", "mode"), [w for w in EVERY_WAY if "rootful" not in str(w.id)])
def test_real_build_every_way(runtime: Runtime, mode: Mode) -> None:
    """The same words, by root and by a user, on runc and on crun."""
    require_runtime(runtime, mode)
    bundle_words, _, last = (shlex.split(line) for line in commands().splitlines())
    with new_lab() as lab:
        shutil.copytree(ROOT / "examples", lab.path / "examples")
        bundle = lab.path / "builds/hello"
        places = {str(BUNDLE): bundle, "examples/": lab.path / "examples/"}
        words = [place_in(word, places) for word in bundle_words[1:]]
        done = specgen(mode, *words)
        assert done.exit_code == 0, done.output
        outcome = run(runtime, mode, bundle)
        assert outcome.exit_code == 0, outcome.output
        assert "building hello 1.0 as uid 1000\n" in outcome.output
        [program] = bundle.glob(last[1].removeprefix(f"{BUNDLE}/"))
        assert subprocess.check_output(("sh", program), text=True) == "Hello, world!\n"


def place_in(word: str, places: dict[str, Path]) -> str:
    for before, after in places.items():
        if word.startswith(before):
            return str(after) + "/" * before.endswith("/") + word.removeprefix(before)
    return word


def test_the_section_has_three_commands() -> None:
    assert len(commands().replace("\\\n", "").splitlines()) == 3


def test_the_request_has_nothing_wrong_with_it() -> None:
    request = read_request(read_request_file(str(EXAMPLE)))
    assert diagnose(request, SpecOptions(rootless=False, terminal=False)) == []


def test_the_digest_is_that_of_the_input() -> None:
    (node,) = read_request_file(str(EXAMPLE)).inputs
    directory = Directory()
    source = EXAMPLE.parent / "hello-inputs" / node.directory.name.decode()
    for path in sorted(source.iterdir()):
        contents = path.read_bytes()
        digest = blake3(contents).digest()
        directory.files.add(name=path.name.encode(), digest=digest, size=len(contents))
    assert blake3(directory.SerializeToString(deterministic=True)).digest() == node.directory.digest
    assert node.directory.size == len(directory.files)
