"""Processes of ours below a server: how they are started, and how they ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

from .settings import Settings, file_of

__all__ = ["how_it_ended", "start"]


def start(module: str, *arguments: str, settings: Settings, **how: Any) -> subprocess.Popen[bytes]:
    """Run a module of ours, with settings on standard input; raises OSError or MemoryError.

    Nothing is imported from the working directory, in which others may write.
    """
    with file_of(settings) as told:
        command = [sys.executable, "-P", "-m", module, *arguments]
        return subprocess.Popen(command, stdin=told, **how)  # noqa: S603 - no word is a caller's


def how_it_ended(code: int) -> str:
    """Return what to say of an exit code, which is negative for a signal."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:  # a real-time one
        return f"signal {-code}"
