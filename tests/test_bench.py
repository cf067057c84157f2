"""A brief run of the benchmarks, to see that they work; what they say of speed is noise here."""

from __future__ import annotations

import re
import subprocess
import sys

from support import TESTS, require, require_program

RUN = TESTS.parent / "bench" / "run.py"


def bench(*args: str) -> str:
    run = subprocess.run([sys.executable, RUN, *args], capture_output=True, text=True, timeout=300)
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
