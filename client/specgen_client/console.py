"""What the ``specgen`` command says, and the codes it ends with."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import click

from specgen.v1.specgen_pb2 import SpecJSON
from specgen_core.text import printable

from .copying import Progress

__all__ = [
    "INTERRUPTED",
    "NO_ANSWER",
    "REFUSED",
    "USAGE",
    "Failed",
    "copying",
    "is_terminal",
    "print_out",
    "refused",
    "warn",
    "warn_of_diagnostics",
]

REFUSED = 1
USAGE = 2
NO_ANSWER = 3
INTERRUPTED = 128 + signal.SIGINT

_PROGRESS_SECONDS = 0.1


class Failed(click.ClickException):
    """Ends the command with sentences on standard error, a line each, and an exit code."""

    def __init__(self, message: str, exit_code: int, *, details: Collection[str] = ()) -> None:
        lines = (printable(message), *(f"  {printable(detail)}" for detail in details))
        super().__init__("\n".join(lines))
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: Any = None) -> None:  # noqa: ARG002
        """Print it, as click asks for."""
        click.echo(f"specgen: {self.message}", err=True)


def refused(violations: Collection[str]) -> Failed:
    """Return what ends the command where the request was refused, for these reasons."""
    return Failed("the request was refused:", REFUSED, details=violations)


def warn(sentence: str) -> None:
    """Print a warning to standard error."""
    click.echo(f"specgen: warning: {printable(sentence)}", err=True)


def warn_of_diagnostics(spec: SpecJSON, but_not: Collection[str] = ()) -> None:
    """Print what will keep a spec from running, but for diagnostics of these codes."""
    for found in spec.diagnostics:
        if found.code not in but_not:
            warn(f"{found.field}: {found.message} [{found.code}]")


def is_terminal(stream: Any) -> bool:
    """Return whether a standard stream is there, and a terminal."""
    return stream is not None and bool(stream.isatty())


def print_out(contents: bytes) -> None:
    """Write to standard output; who reads it may leave early."""
    if sys.stdout is None:  # it was closed before we came
        raise Failed("cannot write standard output: it is closed", USAGE)
    try:
        sys.stdout.buffer.write(contents)
        sys.stdout.buffer.flush()
    except OSError as error:
        # else the interpreter complains when it closes standard output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise Failed(f"cannot write standard output: {error.strerror}", USAGE) from None


@contextmanager
def copying() -> Iterator[Progress | None]:
    """Yield what shows how far the inputs have been copied, where somebody looks on."""
    if not is_terminal(sys.stderr):
        yield None
        return
    shown = 0.0

    def progress(files: int, size: int) -> None:
        nonlocal shown
        if time.monotonic() - shown >= _PROGRESS_SECONDS:
            shown = time.monotonic()
            click.echo(f"\r\x1b[Kcopied {files} files, {size / 1e6:.1f} MB", nl=False, err=True)

    try:
        yield progress
    finally:
        if shown:
            click.echo("\r\x1b[K", nl=False, err=True)
