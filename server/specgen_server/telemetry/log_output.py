"""Standard error, which may be slow, full or closed: whoever logs never waits for it."""

from __future__ import annotations

import faulthandler
import logging
import os
import select
import sys
import threading
from collections import deque

from specgen_core.text import printable

__all__ = ["LogOutput", "standard_error"]

logger = logging.getLogger(__name__)

_MOST_BYTES = 1024 * 1024  # that wait to be written
_AT_ONCE = 4096  # bytes: a pipe takes so many in one piece (PIPE_BUF)
_LONGEST_LINE = 64 * 1024  # bytes, of what others print
_LAST_WORDS = 1.0  # seconds to write what is left at the end


class LogOutput:
    """Writes lines to a file descriptor, from a thread of its own.

    Lines that find the queue full, and lines that cannot be written, are dropped and counted.
    Once a write succeeds again, a log line says how many.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._changed = threading.Condition()
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._writing = False
        self._unsaid = 0
        self._uncounted = 0
        threading.Thread(target=self._write_for_ever, name="log-output", daemon=True).start()

    def write(self, text: str | bytes) -> None:
        """Have whole lines written as soon as may be."""
        data = text if isinstance(text, bytes) else text.encode(errors="backslashreplace")
        with self._changed:
            for line in data.splitlines(keepends=True):
                if self._bytes + len(line) > _MOST_BYTES:
                    self._drop(1)
                else:
                    self._lines.append(line)
                    self._bytes += len(line)
            self._changed.notify_all()

    def take_dropped(self) -> int:
        """Return how many lines were dropped since this was last asked."""
        with self._changed:
            dropped, self._uncounted = self._uncounted, 0
            return dropped

    def flush(self, seconds: float = _LAST_WORDS) -> None:
        """Wait until all is written, but no longer than that."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines and not self._writing, seconds)

    def _drop(self, lines: int) -> None:
        self._unsaid += lines
        self._uncounted += lines

    def _write_for_ever(self) -> None:
        while True:
            batch = self._next_batch()
            try:
                _write_all(self._fd, b"".join(batch))
            except OSError:
                with self._changed:
                    self._drop(len(batch))
                continue
            with self._changed:
                dropped, self._unsaid = self._unsaid, 0
            if dropped:
                logger.warning("%d log lines were dropped: they could not be written", dropped)

    def _next_batch(self) -> list[bytes]:
        with self._changed:
            self._writing = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._lines)
            self._writing = True
            batch = [self._lines.popleft()]
            size = len(batch[0])
            while self._lines and size + len(self._lines[0]) <= _AT_ONCE:
                batch.append(self._lines.popleft())
                size += len(batch[-1])
            self._bytes -= size
            return batch


def _write_all(fd: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:  # whoever gave it to us made it so
            select.select([], [fd], [])


class _StandardError(LogOutput):
    """And what gRPC's core and Python itself print to descriptor 2 comes this way too.

    Otherwise a line of theirs would wait for a reader, with all calls behind it.
    """

    def __init__(self) -> None:
        super().__init__(_inherited())
        faulthandler.enable(self._fd)  # what is in a pipe to ourselves ends with us
        reading, writing = os.pipe()
        os.dup2(writing, 2)
        os.close(writing)
        self._copying = threading.Thread(
            target=self._copy, args=(reading,), name="stderr", daemon=True
        )
        self._copying.start()

    def flush(self, seconds: float = _LAST_WORDS) -> None:
        if sys.stderr:
            sys.stderr.flush()
        os.dup2(self._fd, 2)  # the pipe has no writer left, so copying ends
        self._copying.join(seconds)
        super().flush(seconds)

    def _copy(self, reading: int) -> None:
        rest = b""
        while data := os.read(reading, 64 * 1024):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > _LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            self._pass_on(lines)
        self._pass_on([rest] if rest else [])

    def _pass_on(self, lines: list[bytes]) -> None:
        texts = (line.decode(errors="backslashreplace") for line in lines)
        self.write("".join(f"{printable(text)}\n" for text in texts))


def _inherited() -> int:
    """Return a copy of the standard error that we were started with, if it was open."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # now no pipe or socket of ours can take the place of a standard one
    os.close(fd)
    return os.dup(2)


def standard_error(*, alone: bool) -> LogOutput:
    """Return the way to standard error; ``alone`` unless a supervisor reads what we write.

    ``flush`` is the last thing that a process does with it.
    """
    return _StandardError() if alone else LogOutput(2)
