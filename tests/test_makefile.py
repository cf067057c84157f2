"""The Makefile's virtual environment: what a first try that fails leaves, and what it says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import require_program

ROOT = Path(__file__).parent.parent

WITHOUT_VENV = """#!/bin/sh
# as Debian without python3-venv: an environment without pip, and a failure
case "$1 $2" in
    "-m venv") {python} "$@" --without-pip; echo "you need python3-venv" >&2; exit 1 ;;
esac
exec {python} "$@"
"""
OLD = """#!/bin/sh
case "$1" in
    --version) echo "Python 3.10.12"; exit ;;
    -c) exec {python} -c "import sys; sys.version_info = (3, 10, 12, 'final', 0); $2" ;;
esac
echo "unexpected: $*" >&2
exit 9
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a directory with what `make` looks at."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "protos").mkdir()
    return tmp_path


def make(
    checkout: Path, python: str = "", target: str = ".venv/with-server"
) -> subprocess.CompletedProcess[str]:
    """Run make with a Python whose text is ``python``; nothing is downloaded."""
    program = Path(sys.executable)
    if python:
        program = checkout / "python"
        program.write_text(python.format(python=sys.executable))
        program.chmod(0o755)
    command = [require_program("make"), f"PYTHON={program}", target]
    # not those of a make that runs this test
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    environment = inherited | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    return subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=120
    )


def is_usable(environment: Path) -> bool:
    run = subprocess.run([environment / "bin/python", "-c", "import pip"], capture_output=True)
    return run.returncode == 0


def test_a_try_without_venv_leaves_nothing(checkout: Path) -> None:
    tried = make(checkout, WITHOUT_VENV)
    assert tried.returncode == 2
    assert "you need python3-venv\n" in tried.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("fault", ["no pip", "no python", "python is gone"])
def test_an_unusable_environment_is_made_anew(checkout: Path, fault: str) -> None:
    environment = checkout / ".venv"
    if fault == "no pip":
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    else:
        (environment / "bin").mkdir(parents=True)
        (environment / "with-server").touch()
    if fault == "python is gone":
        (environment / "bin/python").symlink_to("/nowhere/python3")
    tried = make(checkout)
    assert "installing tvix-specgen[server] into .venv\n" in tried.stdout
    assert is_usable(environment)


def test_an_old_python_is_named_at_once(checkout: Path) -> None:
    tried = make(checkout, OLD)
    assert tried.returncode == 2
    assert tried.stdout == ""
    assert tried.stderr.splitlines()[0] == (
        f"tvix-specgen needs Python 3.11 or newer, and {checkout}/python is Python 3.10.12;"
        " name another: make PYTHON=python3.11"
    )
    assert not (checkout / ".venv").exists()


def test_help_names_each_target(checkout: Path) -> None:
    phony = (ROOT / "Makefile").read_text().split(".PHONY: ")[1].splitlines()[0].split()
    said = make(checkout, target="help").stdout.splitlines()
    assert [line.split()[1] for line in said] == phony[1:]
