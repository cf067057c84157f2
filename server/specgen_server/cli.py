"""The ``specgen-server`` command."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from typing import Any

import click

from .listeners import AddressError, UnixSocketLock, bind, unix_path
from .option_flags import spec_flags, spec_options
from .server import build_server
from .settings import Settings

__all__ = ["main"]


@click.command(context_settings={"auto_envvar_prefix": "SPECGEN", "show_default": True})
@click.option(
    "--listen",
    metavar="ADDRESS",
    multiple=True,
    default=("127.0.0.1:50051",),
    help="HOST:PORT or unix:///PATH. Repeatable. Port 0 takes a free one, and prints it.",
)
@spec_flags
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=10.0,
    help="Seconds that calls in flight get to finish when the server stops.",
)
@click.version_option(package_name="tvix-specgen")
def main(listen: tuple[str, ...], grace: float, **spec_values: Any) -> None:
    """Serve specgen.v1.SpecService: a tvix BuildRequest in, an OCI runtime spec out.

    Every option can be given as an environment variable too: SPECGEN_LISTEN,
    SPECGEN_SANDBOX_SHELL and so on.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level="INFO")
    settings = Settings(listen=listen, options=spec_options(**spec_values), grace=grace)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        _serve(settings, stop)
    except AddressError as error:
        click.echo(f"specgen-server: {error}", err=True)
        sys.exit(1)


def _serve(settings: Settings, stop: threading.Event) -> None:
    server, _ = build_server(settings)
    with contextlib.ExitStack() as locks:
        for address in settings.listen:
            path = unix_path(address)
            if path is not None:
                locks.enter_context(UnixSocketLock(path))
            click.echo(f"listening on {bind(server, address)}", err=True)
        server.start()
        stop.wait()
        server.stop(settings.grace).wait()
