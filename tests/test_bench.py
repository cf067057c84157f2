"""A brief run of the benchmarks, to see that they work; what they say of speed is noise here."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from support import TESTS, require, require_program

pytestmark = pytest.mark.bench

BENCH = TESTS.parent / "bench"


def bench(*args: str, program: str = "run.py") -> str:
    command = [sys.executable, BENCH / program, *args]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def test_all_parts_print_their_table() -> None:
    require(require_program("h2load"), "h2load")
    printed = bench("--quick")
    assert re.findall(r"^### \((\w)\)", printed, re.M) == list("abbcdef")
    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    assert len(rows) > 50
    assert not re.search(r"\bnan\b|\binf\b", printed)


def test_a_peer_is_measured_in_the_same_rounds(server: object) -> None:
    require(require_program("h2load"), "h2load")
    address = server.address  # type: ignore[attr-defined]
    printed = bench("--quick", "--only", "b", "--peer", address)
    assert "| peer " in printed


@pytest.mark.parametrize(
    ("program", "args", "says"),
    [
        pytest.param("shapes.py", ["--mib", "0.25"], "holds", id="shapes"),
        pytest.param("quick_is_plain.py", ["--cases", "3000"], "holds", id="quick_is_plain"),
        pytest.param("fuzz.py", ["in-process", "--messages", "1000"], "holds", id="fuzz"),
    ],
)
def test_what_the_documents_cite_works(program: str, args: list[str], says: str) -> None:
    assert says in bench(*args, program=program)
