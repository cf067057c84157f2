"""The flags that say which server to ask, and asking it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import click

from specgen_commands.option_flags import FiniteRange
from specgen_commands.server_address import BadAddress, check_server_address, host_and_port

from . import client as stub
from .console import NO_ANSWER, USAGE, Failed, refused

__all__ = [
    "Connection",
    "check_unused",
    "connected",
    "connection_flags",
    "server_flags",
    "taken_from",
]

F = TypeVar("F", bound=Callable[..., Any])

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_ADDRESSES = "HOST:PORT, unix:///PATH or dns:///NAME:PORT"
_DEFAULT_TIMEOUT = 30.0


class Connection(TypedDict):
    """The values of the flags, by their names; None for what was not given."""

    timeout: float | None
    tls: bool
    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None


def taken_from(values: dict[str, Any]) -> Connection:
    """Return the flags about a connection, and take them out of a command's values."""
    return Connection(
        timeout=values.pop("timeout"),
        tls=values.pop("tls"),
        tls_ca=values.pop("tls_ca"),
        tls_cert=values.pop("tls_cert"),
        tls_key=values.pop("tls_key"),
    )


def connection_flags(command: F) -> F:
    """Add the flags about a connection to a click command."""
    for flag in (
        click.option("--tls-key", type=_FILE, help="Private key of --tls-cert (PEM)."),
        click.option(
            "--tls-cert",
            type=_FILE,
            help="Client certificate, for a server that asks for one (PEM).",
        ),
        click.option("--tls-ca", type=_FILE, help="CA to trust instead (PEM); implies --tls."),
        click.option("--tls", is_flag=True, help="Use TLS, and trust the system's CAs."),
        click.option(
            "--timeout",
            type=FiniteRange(min=0, min_open=True),
            help=f"Seconds to wait for the server.  [default: {_DEFAULT_TIMEOUT:g}]",
        ),
    ):
        command = flag(command)
    return command


def server_flags(*, default: str | None = None) -> Callable[[F], F]:
    """Return what adds --server and the flags about its connection to a click command.

    Args:
        default: the address; without one the spec is made in process.
    """
    said = "" if default else "  [default: none, the spec is made in process]"

    def add(command: F) -> F:
        return click.option(
            "--server",
            metavar="ADDRESS",
            callback=_check_address,
            default=default,
            help=f"The server to ask: {_ADDRESSES}.{said}",
        )(connection_flags(command))

    return add


def _check_address(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        check_server_address(value)
    except BadAddress as error:
        raise click.BadParameter(str(error), ctx, param) from None
    return value


def check_unused(connection: Connection) -> None:
    """Raise click.UsageError for a flag that says nothing without --server."""
    for name, value in connection.items():
        if value:
            raise click.UsageError(f"--{name.replace('_', '-')} goes with --server")


@contextmanager
def connected(server: str, connection: Connection) -> Iterator[stub.SpecClient]:
    """Yield a client; its errors end the command."""
    tls = _tls(connection)
    timeout = connection["timeout"] or _DEFAULT_TIMEOUT
    try:
        with stub.SpecClient(server, tls=tls, timeout=timeout) as client:
            yield client
    except OSError as error:
        raise Failed(f"cannot read {error.filename}: {error.strerror}", USAGE) from None
    except stub.RequestRefused as error:
        raise refused(_violations(error)) from None
    except (stub.ServerUnavailable, stub.DeadlineExceeded) as error:
        hint = "" if tls else _hint(server, timeout)
        raise Failed(f"no answer from {server}: {error.details}{hint}", NO_ANSWER) from None
    except stub.SpecgenError as error:
        raise Failed(f"the server at {server} failed: {error}", NO_ANSWER) from None


def _tls(connection: Connection) -> stub.Tls | None:
    """Return what the flags say of TLS, once OpenSSL has taken the files; gRPC says nothing."""
    ca, cert, key = connection["tls_ca"], connection["tls_cert"], connection["tls_key"]
    if (cert is None) != (key is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    if ca or cert:
        from .tls_probe import check_files  # ssl is slow to load, and few need it

        check_files(ca, cert, key)
    return stub.Tls(ca, cert, key) if connection["tls"] or ca or cert else None


def _hint(server: str, timeout: float) -> str:
    """Return what may be wrong where a server gave no answer in plain text."""
    from .tls_probe import speaks_tls

    if server.startswith("unix:") or not speaks_tls(*host_and_port(server), timeout):
        return ""
    return "; it speaks TLS: try --tls"


def _violations(error: stub.RequestRefused) -> list[str]:
    """Return what the server says, with how many more violations than it had room for."""
    violations = [f"{v.field}: {v.description}" for v in error.violations]
    if not violations:
        return [error.details]
    total = re.match(r"([0-9]{1,9}) violations, the first: ", error.details)
    more = int(total[1]) - len(violations) if total else 0
    if more > 0:
        violations.append(f"and {more} more violations")
    return violations
