"""TLS for the server, from files that may be replaced while it runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from ..telemetry.logs import name_of
from ..tls_files import CredentialsError, TlsFiles

__all__ = ["caller_of", "server_credentials"]

logger = logging.getLogger(__name__)

_LOOK_EVERY = 1.0  # seconds; each new connection asks


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Return credentials that follow the files: new connections get what is in them now.

    Files that cannot be used, such as half-written ones, leave the former in force.

    Raises:
        CredentialsError: they cannot be used at the start.
    """
    reload = _Reload(files)
    return grpc.dynamic_ssl_server_credentials(
        reload.configuration,
        reload,  # type: ignore[arg-type]  # None is allowed, and says "no change"
        require_client_authentication=files.client_ca is not None,
    )


def caller_of(auth_context: Mapping[str, Any]) -> str:
    """Return the name in a caller's certificate, in a form that can be logged.

    That is its common name, else its SPIFFE id or another URI, else its DNS name or another
    alternative name; "" without a certificate.
    """
    for property_ in _NAMES:
        for name in auth_context.get(property_, ()):
            if name:
                return name_of(bytes(name).decode(errors="replace"))
    return ""


# as gRPC calls them; the last one has them all, whatever their kind
_NAMES = (
    "x509_common_name",
    "peer_spiffe_id",
    "peer_uri",
    "peer_dns",
    "x509_subject_alternative_name",
)


class _Reload:
    """Called by gRPC for each new connection: None means that nothing has changed."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._looked = time.monotonic()
        self._stamp = self._stamp_now()
        self.configuration = _read(files, at_start=True)

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        with self._lock:
            now = time.monotonic()
            if now - self._looked < _LOOK_EVERY:
                return None
            self._looked = now
            stamp = self._stamp_now()
            if stamp == self._stamp:
                return None
            self._stamp = stamp
            try:
                self.configuration = _read(self._files)
            except CredentialsError as error:
                logger.warning("keeping the former certificate: %s", error)
                return None
            logger.info("read a new certificate from %s", self._files.cert)
            return self.configuration

    def _stamp_now(self) -> list[tuple[int, ...] | None]:
        return [_stamp(path) for path in (self._files.cert, self._files.key, self._files.client_ca)]


def _stamp(path: str | None) -> tuple[int, ...] | None:
    try:
        status = Path(path).stat() if path else None
    except OSError:
        return None
    if not status:
        return None
    # the last one changes with the mode, too: a file that could not be read may be read now
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(files: TlsFiles, *, at_start: bool = False) -> grpc.ServerCertificateConfiguration:
    warnings = files.check()
    try:
        configuration = grpc.ssl_server_certificate_configuration(
            [(Path(files.key).read_bytes(), Path(files.cert).read_bytes())],
            root_certificates=Path(files.client_ca).read_bytes() if files.client_ca else None,
        )
    except OSError as error:
        raise CredentialsError(f"cannot read {error.filename}: {error.strerror}") from None
    for warning in () if at_start else warnings:  # the command line has said so then
        logger.warning("%s", warning)
    return configuration
