"""The files that TLS needs, and whether they can be used. No gRPC here, as in addresses.py."""

from __future__ import annotations

import ssl

import msgspec

__all__ = ["CredentialsError", "TlsFiles"]


class CredentialsError(Exception):
    """The files are no usable certificate; its text says why, for a person."""


class TlsFiles(msgspec.Struct, frozen=True):
    """Paths of PEM files; they are read again when they change."""

    cert: str
    key: str
    client_ca: str | None = None
    """Who signs the certificates that callers must show; None asks for none."""

    def check(self) -> None:
        """Raise CredentialsError unless they can be used; gRPC would say nothing of it."""
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.cert, self.key, password=_no_password)
            if self.client_ca:
                context.load_verify_locations(self.client_ca)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            names = ", ".join(filter(None, (self.cert, self.key, self.client_ca)))
            raise CredentialsError(f"cannot use {names} for TLS: {error}") from None


def _no_password() -> str:
    raise ValueError("the key is encrypted: give one without a password")
