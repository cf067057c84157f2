"""One serving process: bind, serve, drain.

Alone it is the whole server. A supervisor starts it as ``python -m specgen_server.process.worker``,
and then it gets its settings on standard input, which also tells it, by ending, that the
supervisor is gone; and on standard output it reports, a JSON line each, that it serves and
what it has counted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable

import msgspec

from ..rpc.calls import Accounts
from ..rpc.server import Server
from ..settings import Settings
from ..telemetry.logs import configure_logging
from ..telemetry.stats import CallStats
from .reports import STOP_SIGNALS, Report

__all__ = ["serve"]

logger = logging.getLogger(__name__)


def serve(
    settings: Settings,
    *,
    report: Callable[[Report], None] | None,
    serving: Callable[[list[str]], None],
) -> int:
    """Serve until a stop signal, then drain; return the process' exit code.

    The caller has blocked STOP_SIGNALS, before any thread was there, so that they are ours
    to wait for.

    Args:
        settings: addresses in them are reserved by the caller.
        report: gets what was counted, a few times a second; None where nobody asks.
        serving: is called once calls are taken, with the addresses bound.

    Raises:
        AddressError: an address cannot be bound.
        CredentialsError: the TLS files cannot be used.
    """
    server: Server | None = None

    def reported(stats: CallStats) -> None:
        if report and server:
            report(Report(stats, server.in_flight, server.on_lane))

    logged = settings.log_format if logging.getLogger().isEnabledFor(logging.INFO) else None
    accounts = Accounts(report=reported if report else None, log=logged)
    server = Server(settings, enter=accounts.enter)
    addresses = [server.bind(address) for address in settings.listen]
    server.start()
    serving(addresses)
    signal.sigwait(STOP_SIGNALS)
    drained = _drain(server, settings)
    accounts.close()
    return 0 if drained else 1


_LAST_RESORT = 5.0  # seconds beyond the grace, after which a worker that hangs just ends


def _drain(server: Server, settings: Settings) -> bool:
    """Stop in order; return False if a second signal cut it short.

    Health says NOT_SERVING first, so that balancers look elsewhere while calls are still
    taken. Then clients are told to go, and what is in flight finishes.
    """
    last_resort = threading.Timer(
        settings.drain_delay + settings.grace + _LAST_RESORT, os._exit, (1,)
    )
    last_resort.daemon = True
    last_resort.start()
    logger.info("stopping: not serving, %g s for others to notice", settings.drain_delay)
    server.health.stop_serving()
    if _signalled(settings.drain_delay):
        return False
    stopped = server.stop(settings.grace)
    idle = 0
    while not stopped(0.0):
        idle = idle + 1 if server.in_flight == 0 else 0
        if idle == 3:  # so the last answers are on their way
            server.stop(0)  # what is left are watchers of our health, who would stay for good
        if _signalled(0.02):
            return False
    logger.info("stopped")
    return True


def _signalled(seconds: float) -> bool:
    """Wait so long for one more stop signal."""
    return signal.sigtimedwait(STOP_SIGNALS, seconds) is not None


def _supervised() -> int:
    settings = msgspec.json.decode(sys.stdin.buffer.readline(), type=Settings)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    configure_logging(settings.log_format, settings.log_level)
    threading.Thread(target=_stop_with_supervisor, name="supervised", daemon=True).start()
    encode = msgspec.json.Encoder().encode

    def report(counted: Report) -> None:
        with contextlib.suppress(OSError):  # the supervisor is gone, and we are about to go
            os.write(1, encode(counted) + b"\n")

    return serve(settings, report=report, serving=lambda _: report(Report(CallStats(), 0)))


def _stop_with_supervisor() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    code = _supervised()
    sys.stderr.flush()
    os._exit(code)  # threads may still hold calls of clients that do not go
