"""Addresses to listen on: what they may look like, and taking them without stealing them.

No gRPC here: the supervisor of several workers has none.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from pathlib import Path

__all__ = ["AddressError", "Reservation", "reserve", "unix_path"]


class AddressError(Exception):
    """An address that cannot be listened on; its text says why, for a person."""


def unix_path(address: str) -> Path | None:
    """Return the path of a ``unix:`` address, or None for a tcp address.

    Both spellings of gRPC's naming are taken: ``unix:path`` and ``unix:///absolute/path``.
    """
    if not address.startswith("unix:"):
        return None
    rest = address.removeprefix("unix:")
    return Path(rest.removeprefix("//") if rest.startswith("///") else rest)


class Reservation:
    """An address that is ours for as long as this process lives, or until ``release``.

    ``address`` is the one to bind, with the port that was chosen for port 0.
    """

    def __init__(self, address: str, held: list[int | socket.socket]) -> None:
        self.address = address
        self._held = held

    def release(self) -> None:
        """Give the address up."""
        for held in self._held:
            if isinstance(held, int):
                os.close(held)
            else:
                held.close()


def reserve(address: str, *, shared: bool) -> Reservation:
    """Take an address, for one process to bind, or with ``shared`` for several workers.

    Raises:
        AddressError: it is malformed, not ours to bind, or another server has it.
    """
    if not address.isprintable():  # nor is what came in as other bytes than UTF-8
        raise AddressError(f"cannot listen on {address!r}: it is not HOST:PORT or unix:///PATH")
    path = unix_path(address)
    return _reserve_unix(address, path) if path else _reserve_tcp(address, shared=shared)


def _reserve_unix(address: str, path: Path) -> Reservation:
    """Lock a file beside the socket.

    Binding a unix socket replaces whatever is there, so a second server would take the first
    one's callers, and delete its socket on leaving. The kernel drops the lock when its holder
    dies, so a socket without a held lock is stale. The lock's file stays: were it removed,
    two could hold it.
    """
    try:
        if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
            raise AddressError(f"cannot listen on {path}: it exists, and is no socket")
        lock = path.with_name(f"{path.name}.lock")
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise AddressError(f"cannot listen on {path}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise AddressError(f"cannot listen on {path}: another server does") from None
    return Reservation(address, [fd])


def _reserve_tcp(address: str, *, shared: bool) -> Reservation:
    """Find out whether the port is free, and keep it if several workers will bind it.

    With SO_REUSEPORT a second server would bind the same port in silence. One worker goes
    without it, so the kernel sees to that; several need it among themselves, so a name in
    the abstract namespace keeps other supervisors out.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 0xFFFF:
        raise AddressError(f"cannot listen on {address}: it is not HOST:PORT or unix:///PATH")
    try:
        family, kind, _, _, sockaddr = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise AddressError(f"cannot listen on {address}: {error.strerror}") from None
    try:
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(sockaddr)
        if not shared:
            return Reservation(address, [])
        keeper = socket.socket(family, kind)
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        keeper.bind(sockaddr)
        address = f"{host}:{keeper.getsockname()[1]}"
        name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        name.bind(f"\0specgen-server {address}")
    except OSError as error:
        raise AddressError(f"cannot listen on {address}: {error.strerror}") from None
    return Reservation(address, [keeper, name])
