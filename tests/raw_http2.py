"""A client of HTTP/2 that does what clients of gRPC never do: stall, and read slowly."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

__all__ = [
    "DATA",
    "END_STREAM",
    "HEADERS",
    "PREFACE",
    "RST_STREAM",
    "SETTINGS",
    "RawConnection",
    "connected",
    "frame",
    "stalled_calls",
]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM = ACK = 1
END_HEADERS = 4
INITIAL_WINDOW_SIZE = 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return (
        struct.pack(">I", len(payload))[1:]
        + bytes((kind, flags))
        + struct.pack(">I", stream)
        + payload
    )


def header(name: str, value: str | bytes) -> bytes:
    """Encode a header literally, without Huffman or index (RFC 7541, 6.2.2)."""
    data = value if isinstance(value, bytes) else value.encode()
    return b"\0" + bytes((len(name),)) + name.encode() + bytes((len(data),)) + data


@dataclass
class RawConnection:
    """A connection, whose calls have the streams 1, 3, 5 and so on."""

    socket: socket.socket
    authority: str
    next_stream: int = 1
    buffer: bytes = b""
    first_window: int = 65_535
    windows: dict[int, int] = field(default_factory=lambda: {0: 65_535})
    """What the server lets us send, by stream; of the whole connection at 0."""

    def begin(self, path: str, *more: tuple[str, str | bytes]) -> int:
        """Send the headers of a call, and return its stream."""
        stream, self.next_stream = self.next_stream, self.next_stream + 2
        self.windows[stream] = self.first_window
        fields = (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", self.authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *more,
        )
        block = b"".join(header(name, value) for name, value in fields)
        self.socket.sendall(frame(HEADERS, END_HEADERS, stream, block))
        return stream

    def call(self, path: str, wire: bytes, *more: tuple[str, str | bytes]) -> int:
        """Send a whole call, as the server grants windows, and return its stream."""
        stream = self.begin(path, *more)
        message = b"\0" + struct.pack(">I", len(wire)) + wire
        while message:
            room = min(self.windows[0], self.windows[stream], 16_384)
            if room <= 0:
                self.read()
                continue
            part, message = message[:room], message[room:]
            self.socket.sendall(frame(DATA, 0 if message else END_STREAM, stream, part))
            self.windows[0] -= len(part)
            self.windows[stream] -= len(part)
        return stream

    def read(self) -> tuple[int, int, int, bytes]:
        """Return a frame's kind, flags, stream and payload, having seen to what it asks for."""
        while len(self.buffer) < 9 or len(self.buffer) < 9 + self._length():
            received = self.socket.recv(16_384)
            if not received:
                raise ConnectionError("the server closed the connection")
            self.buffer += received
        end = 9 + self._length()
        kind, flags = self.buffer[3], self.buffer[4]
        (stream,) = struct.unpack(">I", self.buffer[5:9])
        payload, self.buffer = self.buffer[9:end], self.buffer[end:]
        if kind == SETTINGS and not flags & ACK:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == INITIAL_WINDOW_SIZE:
                    for of in self.windows.keys() - {0}:
                        self.windows[of] += value - self.first_window
                    self.first_window = value
            self.socket.sendall(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self.socket.sendall(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            self.windows[stream] += struct.unpack(">I", payload)[0]
        return kind, flags, stream, payload

    def _length(self) -> int:
        return int.from_bytes(self.buffer[:3], "big")

    def grant(self, stream: int, size: int, *, or_closed: bool = False) -> None:
        """Let the server send so many bytes more; it may have closed the connection."""
        with suppress(*([ConnectionError] if or_closed else [])):
            for of in (0, stream):
                self.socket.sendall(frame(WINDOW_UPDATE, 0, of, struct.pack(">I", size)))


@contextmanager
def connected(address: str, *, window: int = 65_535) -> Iterator[RawConnection]:
    """Connect to HOST:PORT; the server may send ``window`` bytes of each answer unasked."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, window))
        )
        yield RawConnection(connection, address)


@contextmanager
def stalled_calls(address: str, count: int, path: str) -> Iterator[None]:
    """Begin calls on a connection, whose messages never come."""
    with connected(address) as connection:
        for _ in range(count):
            connection.begin(path)
        yield
