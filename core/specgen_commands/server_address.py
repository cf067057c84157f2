"""Addresses of a server to call, checked before anything is sent anywhere."""

from __future__ import annotations

import ipaddress

from specgen_core.text import printable

__all__ = ["BadAddress", "check_server_address", "host_and_port"]

_FORMS = "HOST:PORT, unix:///PATH or dns:///NAME:PORT"


class BadAddress(ValueError):
    """An address that cannot be called; its text says why, for a person."""


def check_server_address(address: str) -> None:
    """Check an address as gRPC does, and refuse what gRPC would silently take for another one.

    gRPC calls port 443 where none is given, and takes a port that is none modulo 65536.

    Raises:
        BadAddress: it is none.
    """
    if not address.strip():
        raise BadAddress("it is empty, and must be an address")
    try:
        address.encode()
    except UnicodeEncodeError:
        raise BadAddress(f"{printable(address)} is not UTF-8") from None
    if not address.isprintable():
        raise BadAddress(f"{printable(address)} is not {_FORMS}")
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if not path or path[0] == "@" or (path.startswith("//") and not path.startswith("///")):
            raise BadAddress(f"{address} is not {_FORMS}")
        return
    host_and_port(address)


def host_and_port(address: str) -> tuple[str, int]:
    """Return host and port of an address that is no unix socket's.

    Raises:
        BadAddress: it has none.
    """
    rest = address
    if address.startswith("dns:"):
        rest = address.removeprefix("dns:")
        if rest.startswith("//"):
            rest = rest[2:].partition("/")[2]  # behind the name server to ask
    host, _, port = rest.rpartition(":")
    if not _is_host(host) or not port.isascii() or not port.isdecimal():
        raise BadAddress(f"{address} is not {_FORMS}")
    if len(port) > 5 or not 0 < int(port) < 65536:
        raise BadAddress(f"{address}: a port is a number from 1 to 65535")
    return host.strip("[]"), int(port)


def _is_host(host: str) -> bool:
    if not host.startswith("["):
        return bool(host) and not set(host) & set(" /:[]@*")
    try:
        ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return host.endswith("]")
