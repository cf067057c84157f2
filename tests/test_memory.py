"""Memory that is free again: glibc keeps some, and gives it back when told to."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
from support import require

PROGRAM = """
from pathlib import Path
from specgen_server.memory import give_back_freed_memory, keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

keep_freed_memory()
before = resident()
large = [b"x" * (1 << 20) for _ in range(6)]
del large
kept = resident() - before
give_back_freed_memory(6 << 20)
print(kept >> 20, (resident() - before) >> 20)
"""


@pytest.mark.parametrize(
    ("given", "least_kept", "most_kept"),
    [({}, 5, 7), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, 0, 2)],
    ids=["ours", "the_operators"],
)
def test_freed_memory(given: dict[str, str], least_kept: int, most_kept: int) -> None:
    require(platform.libc_ver()[0] == "glibc", "glibc")
    environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment | given,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, left = map(int, run.stdout.split())
    assert least_kept <= kept <= most_kept
    assert left <= 1


def test_another_c_library_is_left_alone() -> None:
    program = (
        "import ctypes; ctypes.CDLL = lambda _: object();"
        "from specgen_server.memory import *; keep_freed_memory(); give_back_freed_memory(6 << 20)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
