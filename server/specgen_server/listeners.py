"""Addresses: what they may look like, and binding them without stealing them."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from typing import Self

import grpc

__all__ = ["AddressError", "UnixSocketLock", "bind", "unix_path"]


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


class UnixSocketLock:
    """A lock beside a unix socket, held as long as its server lives.

    Binding a unix socket replaces whatever is there, so a second server would take the
    first one's callers, and delete its socket on leaving. The kernel drops the lock when
    its holder dies, so a socket without a locked lock is stale.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.with_name(path.name + ".lock")
        try:
            if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
                raise AddressError(
                    f"{path} is there already, and no socket: remove it, or use another path"
                )
            self._fd = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise AddressError(f"cannot listen on {path}: {error.strerror}") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise AddressError(f"another server listens on {path}") from None

    def release(self) -> None:
        """Give the lock up. Its file stays: removing it would let two hold it."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def bind(
    server: grpc.Server, address: str, credentials: grpc.ServerCredentials | None = None
) -> str:
    """Bind an address, and return it with the port that was chosen for port 0.

    Raises:
        AddressError: it is taken, malformed, or not ours to bind.
    """
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError:
        port = 0
    if port == 0:
        raise AddressError(
            f"cannot listen on {address}: another server may listen there, or it is not HOST:PORT "
            "or unix:///PATH with a host of this machine"
        )
    if unix_path(address) is not None:
        return address
    return f"{address.rpartition(':')[0]}:{port}"
