"""Large answers of a server that stops: their callers get time to read the end of them.

gRPC's core closes the connection of a stopping server with the last call on it. A client that
still reads grants windows meanwhile, the kernel answers those with a reset, and the end of the
answer is lost. So its call stays open until the answer has reached the client's machine, and
a moment longer.
"""

from __future__ import annotations

import fcntl
import struct
import termios
from contextlib import suppress
from pathlib import Path
from time import perf_counter

__all__ = ["LARGE", "is_read"]

LARGE = 64 * 1024
"""Bytes of an answer that is large: HTTP/2 has at least so much of one on its way unread."""

_MOMENT = 1.0  # seconds
_INT = struct.Struct("i")


def is_read(sent_at: float) -> bool:
    """Return whether what was handed to the kernel then can be taken for read.

    Args:
        sent_at: by the clock of ``time.perf_counter``, in seconds.
    """
    return perf_counter() - sent_at > _MOMENT and not _bytes_in_kernel()


def _bytes_in_kernel() -> int:
    """Return how many bytes our sockets hold that their peers have not acknowledged."""
    total = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # it is closed by now
            if str(link.readlink()).startswith("socket:"):
                total += _INT.unpack(fcntl.ioctl(int(link.name), termios.TIOCOUTQ, bytes(4)))[0]
    return total
