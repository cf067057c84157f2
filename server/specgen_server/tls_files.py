"""The files that TLS needs, and whether they can be used. No gRPC here, as in addresses.py."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from .certificate import Certificate, read_certificate

__all__ = ["CredentialsError", "TlsFiles"]


class CredentialsError(Exception):
    """The files cannot be used; its text says which one and why, for a person."""


class TlsFiles(msgspec.Struct, frozen=True):
    """Paths of PEM files; they are read again when they change."""

    cert: str
    key: str
    client_ca: str | None = None
    """Who signs the certificates that callers must show; None asks for none."""

    def check(self) -> list[str]:
        """Return what speaks against using them, as sentences; gRPC would say nothing of it.

        Raises:
            CredentialsError: they cannot be used.
        """
        chain = _certificates(self.cert)
        if not _KEY.search(_read(self.key)):
            raise CredentialsError(f"cannot use {self.key}: it has no private key in PEM")
        self._check_pair()
        kind = chain[0].unusable_key
        if kind:
            raise CredentialsError(f"cannot use {self.cert}: its key is {kind}, which gRPC lacks")
        warnings = list(_of_the_time(self.cert, chain))
        if chain[0].rare_key:
            warnings.append(
                f"{self.cert}: its key is {chain[0].rare_key}, so clients built on gRPC's C core "
                "cannot connect: take RSA, P-256 or P-384"
            )
        if self.client_ca:
            warnings += _of_the_time(self.client_ca, _certificates(self.client_ca))
        return warnings

    def _check_pair(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.cert, self.key, password=_no_password)
        except ssl.SSLError as error:
            if error.reason in _MISMATCHES:
                raise CredentialsError(
                    f"cannot use {self.key}: it is the key of another certificate than {self.cert}"
                ) from None
            why = error.reason or "one of them is damaged"
            raise CredentialsError(f"cannot use {self.cert} and {self.key}: {why}") from None
        except OSError as error:
            raise CredentialsError(f"cannot read {self.key}: {error.strerror}") from None
        except ValueError as error:
            raise CredentialsError(f"cannot use {self.key}: {error}") from None


_KEY = re.compile(rb"^-----BEGIN ([A-Z]+ )*PRIVATE KEY-----", re.MULTILINE)
_CERTIFICATE = re.compile(
    r"^-----BEGIN (?:X509 )?CERTIFICATE-----(.*?)^-----END (?:X509 )?CERTIFICATE-----",
    re.MULTILINE | re.DOTALL,
)
# the second stands for a key of another kind
_MISMATCHES = ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED", "KEY_TYPE_MISMATCH")


def _read(path: str) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise CredentialsError(f"cannot read {path}: {error.strerror}") from None
    if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise CredentialsError(
            f"cannot use {path}: it begins with a byte order mark, which is no PEM"
        )
    return content


def _certificates(path: str) -> list[Certificate]:
    """Return all certificates in a file, of which there is at least one."""
    blocks = _CERTIFICATE.findall(_read(path).decode("latin-1"))
    if not blocks:
        raise CredentialsError(f"cannot use {path}: it has no certificate in PEM")
    try:
        return [read_certificate(block) for block in blocks]
    except ValueError as error:
        raise CredentialsError(f"cannot use {path}: {error}") from None


def _of_the_time(path: str, certificates: list[Certificate]) -> Iterator[str]:
    now = time.time()
    for number, certificate in enumerate(certificates):
        which = path if len(certificates) == 1 else f"{path}, certificate {number + 1}"
        if now > certificate.not_after:
            yield f"{which}: it expired on {_date(certificate.not_after)}"
        elif now < certificate.not_before:
            yield f"{which}: it is not valid before {_date(certificate.not_before)}"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _no_password() -> str:
    raise ValueError("the key is encrypted: give one without a password")
