"""What SPECGEN_REQUIRE_ALL makes of skipped tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import TESTS

SKIPPED = """
import pytest
from support import require, require_program

@pytest.fixture
def runtime():
    require(False, "runtime")

def test_program(): require_program("no-such-program")
def test_fixture(runtime): ...
@pytest.mark.skip(reason="marked")
def test_marked(): ...
@pytest.mark.xfail(reason="known", strict=True)
def test_known(): assert False
"""


@pytest.mark.parametrize(
    ("required", "code", "summary"),
    [
        pytest.param("", 0, "3 skipped, 1 xfailed", id="no"),
        pytest.param("1", 1, "1 failed, 1 xfailed, 2 errors", id="yes"),
    ],
)
def test_a_skip_fails_where_everything_is_required(
    tmp_path: Path, required: str, code: int, summary: str
) -> None:
    (tmp_path / "test_skipped.py").write_text(SKIPPED)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", tmp_path]
    environment = os.environ | {"PYTHONPATH": str(TESTS), "SPECGEN_REQUIRE_ALL": required}
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == code, run.stdout
    assert run.stdout.splitlines()[-1].startswith(summary), run.stdout
    if required:
        assert "SPECGEN_REQUIRE_ALL is set, and this was skipped. Skipped: no runtime" in run.stdout
