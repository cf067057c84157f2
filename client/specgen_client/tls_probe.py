"""TLS by OpenSSL, to find out what is wrong where gRPC only says that something is."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from .console import USAGE, Failed

__all__ = ["check_files", "speaks_tls"]

_MAX_SECONDS = 2.0


def check_files(ca: Path | None, cert: Path | None, key: Path | None) -> None:
    """End the command where files are not what --tls-ca, --tls-cert and --tls-key want."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if ca:
            context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise Failed(f"--tls-ca: {ca} has no certificate in PEM: {_why(error)}", USAGE) from None
    except OSError as error:
        raise Failed(f"--tls-ca: cannot read {ca}: {error.strerror}", USAGE) from None
    try:
        if cert and key:
            context.load_cert_chain(cert, key, password=lambda: "")  # do not ask for it
    except ssl.SSLError as error:
        raise Failed(
            f"--tls-cert, --tls-key: {cert} and {key} are no certificate in PEM with its key,"
            f" unencrypted: {_why(error)}",
            USAGE,
        ) from None
    except OSError as error:
        raise Failed(
            f"--tls-cert, --tls-key: cannot read {cert} or {key}: {error.strerror}", USAGE
        ) from None


def _why(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()


def speaks_tls(host: str, port: int, timeout: float) -> bool:
    """Return whether a server takes TLS; ``timeout`` is in seconds."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent, so it need not be who it should be
    context.set_alpn_protocols(["h2"])
    address = (host, port)
    try:
        with (
            socket.create_connection(address, timeout=min(timeout, _MAX_SECONDS)) as plain,
            context.wrap_socket(plain),
        ):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # said in TLS
    except OSError:
        return False
