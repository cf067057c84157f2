"""What goes between a server and its side process: a head and a message's bytes, each way."""

from __future__ import annotations

import mmap
import os
import socket
import struct
from typing import Generic, TypeVar

import msgspec

from specgen_core import SpecOptions, Violation

__all__ = ["Job", "Link", "Mark", "Reply"]

T = TypeVar("T")

_SIZES = struct.Struct("=QQ")  # of the head, and of the bytes
_TIMEOUT = struct.Struct("@ll")


class Job(msgspec.Struct, array_like=True):
    """How to answer a BuildRequest, with its bytes."""

    number: int
    options: SpecOptions
    request_id: str


class Reply(msgspec.Struct, array_like=True):
    """What came of it, with the answer's bytes if there is one; else with the status instead."""

    number: int = 0
    """That of the job; 0 for the first word, that it is ready."""
    inputs: int | None = None
    """How many the build has, once that is known."""
    code: str = "OK"
    message: str = ""
    violations: list[Violation] = []


class Link(Generic[T]):
    """One end of the socket; it receives heads of one kind."""

    def __init__(self, link: socket.socket, kind: type[T], *, longest_still: int = 0) -> None:
        """Take a socket, and the seconds after which it fails in which nothing goes through it.

        Then BlockingIOError is raised, and the link is of no more use. 0: it waits for ever.
        """
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            link.setsockopt(socket.SOL_SOCKET, option, _TIMEOUT.pack(longest_still, 0))
        self._socket = link
        self._decoder = msgspec.msgpack.Decoder(kind)

    def send(self, head: Job | Reply, payload: bytes) -> None:
        """Send both; raises OSError where there is nobody at the other end."""
        encoded = msgspec.msgpack.encode(head)
        self._socket.sendall(_SIZES.pack(len(encoded), len(payload)) + encoded)
        self._socket.sendall(payload)

    def receive(self) -> tuple[T, bytes]:
        """Wait for both; raises EOFError or OSError where nobody is left to send them."""
        of_head, of_payload = _SIZES.unpack(self._exactly(_SIZES.size))
        return self._decoder.decode(self._exactly(of_head)), self._exactly(of_payload)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:  # a signal may cut it short
            more = self._socket.recv(size - len(data), socket.MSG_WAITALL)
            if not more:
                raise EOFError
            data = data + more if data else more
        return data

    def close(self) -> None:
        """Tell the other end that this one is gone."""
        self._socket.close()


class Mark:
    """A number in memory that both processes see, so that neither has to ask the other."""

    _NUMBER = struct.Struct("=Q")

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, self._NUMBER.size)

    @classmethod
    def new(cls) -> tuple[Mark, int]:
        """Return a new one, and the descriptor by which another process finds it."""
        fd = os.memfd_create("mark")
        os.truncate(fd, cls._NUMBER.size)
        return cls(fd), fd

    def set(self, number: int) -> None:
        """Let the other process see this number."""
        self._NUMBER.pack_into(self._memory, 0, number)

    def get(self) -> int:
        """Return the number that was set last."""
        number: int = self._NUMBER.unpack_from(self._memory)[0]
        return number
