"""README's commands, run as they stand there in a checkout; ports and system paths are replaced."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import RunningServer, require_program

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SERVED = "127.0.0.1:50051"


def blocks(language: str) -> list[str]:
    """Return the blocks to paste, but for the real build: test_readme_example.py has that."""
    found = re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [block for block in found if "runc run" not in block]


SHELL = blocks("sh")
UNIT = next(block for block in SHELL if "systemctl" in block)
PROGRAMS = {"grpcurl", "jq", "kustomize", "node", "npm", "go", "protoc"}
USES = {"sh generate.sh": "protoc"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of what the commands use, with the environment of this run."""
    ignored = shutil.ignore_patterns("node_modules", "go.sum", "*_pb2*", "__pycache__")
    for name in ("protos", "examples", "deploy"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


def paste(text: str, directory: Path) -> str:
    """Run the text, as pasted into a shell; return what it prints."""
    go = f'PATH="$PATH:{Path.home()}/go/bin"\n'
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", go + text],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "text", [b for b in SHELL if b != UNIT], ids=lambda b: b.split("\n")[0][:40]
)
def test_commands(text: str, checkout: Path, server: RunningServer) -> None:
    for program in PROGRAMS & set(re.findall(r"[\w-]+", text)):
        require_program(program)
    for command, program in USES.items():
        if command in text:
            require_program(program)
    text = text.replace("node call.js", f"node call.js {server.address}")
    text = text.replace("go run .", f"go run . {server.address}")
    paste(text.replace(SERVED, server.address), checkout)
    for written in checkout.rglob("config.json"):
        assert json.loads(written.read_text())["ociVersion"]
    if "config.json" in text or "call.js" in text or "go run" in text:
        assert list(checkout.rglob("config.json"))


def test_the_flags_that_leave_nothing_to_say(checkout: Path) -> None:
    (text,) = [block for block in SHELL if "--rootful --no-terminal" in block]
    assert paste(f"exec 2>&1\n{text}", checkout) == ""


def test_the_units_installation(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    for program in ("systemctl", "systemd-sysusers"):
        require_program(program)
    root = tmp_path_factory.mktemp("root")
    text = re.sub(r"(^| )/(?=opt|usr|etc)", rf"\1{root}/", UNIT, flags=re.MULTILINE)
    text = text.replace("'.[server]'", "--no-deps pip")  # test_distribution.py installs ours
    text = text.replace("systemd-sysusers", f"systemd-sysusers --root={root}")
    text = text.replace("enable --now", f"--root={root} enable --quiet")
    paste(text, checkout)
    assert (root / "etc/systemd/system/multi-user.target.wants/specgen-server.service").is_symlink()
    assert re.search(r"^specgen:", (root / "etc/passwd").read_text(), re.MULTILINE)


def test_the_python_call(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = blocks("python")
    exec(code.replace(SERVED, server.address), {})
    assert capsys.readouterr().out == "39 mounts\n"


def test_make_targets_named_there_exist() -> None:
    targets = (ROOT / "Makefile").read_text().split(".PHONY: ")[1].splitlines()[0].split()
    named = re.findall(r"^ +make (\w+)", README, re.MULTILINE)
    assert named
    assert set(named) <= set(targets)


def test_each_page_is_linked() -> None:
    assert {path.name for path in ROOT.glob("docs/*.md")} <= set(
        re.findall(r"docs/([\w-]+\.md)", README)
    )
    assert not re.search(r"^.*--force.*$", "\n".join(SHELL), re.MULTILINE)
