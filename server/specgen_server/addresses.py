"""Addresses to listen on: what they may look like, and taking them without stealing them.

No gRPC here: the supervisor of several workers has none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import re
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = [
    "AddressError",
    "Reservation",
    "host_and_port",
    "is_wildcard",
    "reserve",
    "unix_path",
    "without_twins",
]

_MALFORMED = "it is not HOST:PORT"
_LONGEST_UNIX_PATH = 107  # bytes, the kernel's limit
_ALL = "*"  # any address of this host; in locks only
_LOCKS = "specgen-server"
_PATIENCE = 5.0  # seconds, for another server that takes the same port just now


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


def host_and_port(address: str) -> tuple[str, int]:
    """Return the parts of HOST:PORT; an IPv6 address stands in brackets.

    Raises:
        ValueError: it is something else; the text says what would be right.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 0xFFFF:
        raise ValueError(_MALFORMED)
    if host in ("", "*", "[]"):
        raise ValueError(f"for all addresses of this host write [::]:{port} or 0.0.0.0:{port}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("an IPv6 address stands in brackets, as in [::1]:50051")
    return host, int(port)


def is_wildcard(host: str) -> bool:
    """Whether this is 0.0.0.0 or ::, which both mean all addresses, of IPv6 and IPv4 alike."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


class Reservation:
    """An address that is ours for as long as this process lives, or until ``release``.

    ``address`` is the one to bind, with the port that was chosen for port 0.
    """

    def __init__(self, address: str, held: contextlib.ExitStack) -> None:
        self.address = address
        self.release = held.close
        """Give the address up, and leave no lock's file behind."""


def reserve(address: str, *, shared: bool) -> Reservation:
    """Take an address, for one process to bind, or with ``shared`` for several workers.

    Raises:
        AddressError: it is malformed, not ours to bind, or another server has it.
    """
    path = unix_path(address)
    with contextlib.ExitStack() as held:
        try:
            if not address.isprintable():  # nor is what came in as other bytes than UTF-8
                raise ValueError(_MALFORMED)
            if path is not None:
                _reserve_unix(address, path, held)
            else:
                address = _reserve_tcp(address, shared, held)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            if why == _MALFORMED:
                why += " or unix:///PATH"
            name = path if path and path.name and path.is_absolute() else address
            raise AddressError(f"cannot listen on {name}: {why}") from None
        return Reservation(address, held.pop_all())


def without_twins(addresses: Iterable[str]) -> list[str]:
    """Leave out a second wildcard with the same port: either of them takes IPv6 and IPv4."""
    kept: dict[object, str] = {}
    for address in addresses:
        key: object = address
        with contextlib.suppress(ValueError):
            host, port = host_and_port(address)
            if port and is_wildcard(host):
                key = port
        kept.setdefault(key, address)
    return list(kept.values())


def _reserve_unix(address: str, path: Path, held: contextlib.ExitStack) -> None:
    """Lock a file beside the socket.

    Binding a unix socket replaces whatever is there, so a second server would take the first
    one's callers, and delete its socket on leaving. The kernel drops the lock when its holder
    dies, so a socket without a held lock is stale.
    """
    rest = address.removeprefix("unix:")
    if rest.startswith("//") and not rest.startswith("///"):
        raise ValueError("after unix:// comes an absolute path, as in unix:///run/specgen.sock")
    if rest.startswith("@"):
        raise ValueError("an abstract socket has no mode, so everybody could call: give a path")
    if not path.name:
        raise ValueError(_MALFORMED)
    if len(os.fsencode(path)) > _LONGEST_UNIX_PATH:
        raise ValueError(f"a socket's path has at most {_LONGEST_UNIX_PATH} bytes")
    if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
        raise ValueError("it exists, and is no socket")
    lock = path.with_name(f"{path.name}.lock")
    fd = _locked(lock)
    held.callback(os.close, fd)
    held.callback(lock.unlink, missing_ok=True)  # which comes first, so none but us has it open


def _locked(lock: Path) -> int:
    while True:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), lock.stat(follow_symlinks=False)):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise ValueError("another server does") from None
        except FileNotFoundError:
            pass
        os.close(fd)  # whoever had the lock removed this file just now


def _reserve_tcp(address: str, shared: bool, held: contextlib.ExitStack) -> str:
    """Find out whether the port is free, lock it, and keep it if several workers will bind it.

    With SO_REUSEPORT a second server would bind the same port in silence. One worker goes
    without it, so the kernel sees to that; several need it among themselves, so locks keep
    other servers out.
    """
    host, port = host_and_port(address)
    sockaddrs = _resolved(host, port)
    with _one_at_a_time(port):
        if port:
            _refuse_locked(sockaddrs, port)
        missing: OSError | None = None
        bound = 0
        for family, sockaddr in sockaddrs:
            try:
                port = _take(family, sockaddr, port, shared, held)
                bound += 1
            except OSError as error:
                # a name may stand for addresses that this host does not have
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error
        if missing and not bound:
            raise missing
    return f"{address.rpartition(':')[0]}:{port}"


def _resolved(host: str, port: int) -> list[tuple[int, Any]]:
    """Return the families and socket addresses that gRPC will bind for a host."""
    if is_wildcard(host):
        return [(socket.AF_INET6, ("::", port)), (socket.AF_INET, ("0.0.0.0", port))]  # noqa: S104
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise ValueError(error.strerror) from None
    except UnicodeError:
        raise ValueError(_MALFORMED) from None
    return sorted({(int(family), sockaddr) for family, _, _, _, sockaddr in found})


def _take(family: int, sockaddr: Any, port: int, shared: bool, held: contextlib.ExitStack) -> int:
    """Bind an address, if only to see that it can be had; return its port."""
    sockaddr = (sockaddr[0], port, *sockaddr[2:])
    probe = _bound(family, sockaddr, socket.SO_REUSEADDR)
    probe.close()
    if shared:
        keeper = held.enter_context(
            _bound(family, sockaddr, socket.SO_REUSEADDR, socket.SO_REUSEPORT)
        )
        port = keeper.getsockname()[1]
    if port:
        held.enter_context(_abstract(f"{_LOCKS} {_canonical(sockaddr[0])} {port}"))
    return port


def _bound(family: int, sockaddr: Any, *options: int) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        for option in options:
            bound.setsockopt(socket.SOL_SOCKET, option, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(sockaddr)
    except OSError:
        bound.close()
        raise
    return bound


# Locks are names in the abstract namespace, which has the same borders as the ports (the
# network namespace), asks for no directory, and forgets a name with the process that has it.


def _abstract(name: str) -> socket.socket:
    return _bound(socket.AF_UNIX, f"\0{name}")


@contextlib.contextmanager
def _one_at_a_time(port: int) -> Iterator[None]:
    """Let no other server look at this port's locks before ours are there."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            lock = _abstract(f"{_LOCKS} takes {port}")
            break
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > until:
                raise
            time.sleep(0.01)
    with lock:
        yield


def _refuse_locked(sockaddrs: list[tuple[int, Any]], port: int) -> None:
    """Raise OSError where another server has one of these addresses, or either all of them."""
    ours = {_canonical(sockaddr[0]) for _, sockaddr in sockaddrs}
    name = re.compile(rf"@{_LOCKS} (\S+) {port}$", re.MULTILINE)
    try:
        theirs = set(name.findall(Path("/proc/self/net/unix").read_text(errors="replace")))
    except OSError:
        return  # then only a lock of just the same name keeps us out
    if theirs and (ours & theirs or _ALL in ours | theirs):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _canonical(host: str) -> str:
    """Return a lock's name for an address as the kernel has it."""
    if is_wildcard(host):
        return _ALL
    address = ipaddress.ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
