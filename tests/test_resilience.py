"""Short runs of the scripts behind the figures in docs/operations.md."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support import TESTS

BENCH = TESTS.parent / "bench"


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("fuzz.py in-process --messages 5000", id="fuzz_in_process"),
        pytest.param("fuzz.py socket --messages 2000", id="fuzz_socket"),
        pytest.param("crosstalk.py --calls 4000", id="crosstalk"),
        pytest.param("resilience.py restarts --rounds 1", id="rolling_restarts"),
        pytest.param("resilience.py kills --seconds 4", id="killed_workers"),
    ],
)
def test_it_holds(command: str) -> None:
    script, *args = command.split()
    run = subprocess.run(
        [sys.executable, BENCH / script, *args], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    assert run.stdout.endswith("\nholds\n")
