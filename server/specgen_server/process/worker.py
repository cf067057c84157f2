"""One serving process: bind, serve, drain.

Alone it is the whole server. A supervisor starts it as ``python -m specgen_server.process.worker``,
and then it gets its settings, as JSON, on standard input. Its standard output is a socket, on
which it reports that it serves and what it has counted, and which tells it, by ending, that
the supervisor is gone.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import msgspec

from ..addresses import AddressError
from ..memory import keep_freed_memory
from ..rpc.server import Server
from ..settings import Settings, read_settings
from ..telemetry.call_log import CallLog
from ..telemetry.log_output import LogOutput, standard_error
from ..telemetry.logs import configure_logging
from ..telemetry.stats import CallStats
from ..tls_files import CredentialsError
from .reports import Report
from .signals import block_stop_signals, stop_signalled

__all__ = ["serve"]

logger = logging.getLogger(__name__)


def serve(
    settings: Settings,
    *,
    output: LogOutput,
    report: Callable[[Report], bool] | None,
    serving: Callable[[list[str]], object],
) -> int:
    """Serve until a stop signal, then drain; return the process' exit code.

    The caller has blocked the stop signals, before any thread was there.

    Args:
        settings: addresses in them are reserved by the caller.
        output: where log lines go.
        report: gets what was counted, a few times a second, and returns whether it took it;
            None where nobody asks.
        serving: is called once calls are taken, with the addresses bound.

    Raises:
        AddressError: an address cannot be bound.
        CredentialsError: the TLS files cannot be used.
    """
    threading.excepthook = partial(_end_with_thread, output)
    keep_freed_memory()
    server: Server | None = None

    def reported(stats: CallStats) -> bool:
        if not (report and server):
            return False
        return report(Report(stats, server.in_flight, server.on_lane))

    logged = settings.log_format if logging.getLogger().isEnabledFor(logging.INFO) else None
    call_log = CallLog(report=reported if report else None, log=logged, output=output)
    server = Server(settings, enter=call_log.enter)
    addresses = [server.bind(address) for address in settings.listen]
    gc.freeze()  # or each large request would have all that is loaded looked through for garbage
    server.start()
    serving(addresses)
    while not _signalled(3600.0):
        pass
    drained = _drain(server, settings)
    if not drained:  # else it is closed
        server.close()  # before the end of what is logged, which it would hold up
    call_log.close()
    return 0 if drained else 1


def _end_with_thread(output: LogOutput, failed: threading.ExceptHookArgs) -> None:
    """End the process when one of its threads has failed.

    Without the thread that takes calls it would listen and answer nothing, for good.
    """
    name = failed.thread.name if failed.thread else "a thread"
    error = failed.exc_value or failed.exc_type()
    logger.critical("thread %s failed, so this process ends", name, exc_info=error)
    output.flush()
    os._exit(1)


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
    with suppress(RuntimeError):  # where no thread can be started, it is done without
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
    return stop_signalled(seconds)


def _supervised() -> int:
    settings = read_settings()
    block_stop_signals()
    output = standard_error(alone=False)
    configure_logging(settings.log_format, settings.log_level, output)
    reports = socket.socket(fileno=1)
    encode = msgspec.json.Encoder().encode

    def report(counted: Report) -> bool:
        try:
            reports.send(encode(counted), socket.MSG_DONTWAIT)
        except OSError:  # the supervisor does not listen now: it is told later
            return False
        return True

    try:
        threading.Thread(
            target=_stop_with_supervisor, args=(reports,), name="supervised", daemon=True
        ).start()
        return serve(
            settings,
            output=output,
            report=report,
            serving=lambda _: report(Report(CallStats(), 0)),
        )
    except (AddressError, CredentialsError, OSError, RuntimeError, MemoryError) as error:
        logger.error("cannot start: %s", error)
        return 1
    finally:
        output.flush()


def _stop_with_supervisor(reports: socket.socket) -> None:
    while reports.recv(1):  # it never sends, so this ends with it
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    os._exit(_supervised())  # threads may still hold calls of clients that do not go
