"""Several workers on the same addresses, each a process of its own.

The kernel deals new connections out to them (SO_REUSEPORT). This process has no gRPC in it:
it starts the workers, starts those that die again, passes signals on, and adds up what they
count.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import sys
import threading
import time

import msgspec

from ..addresses import unix_path
from ..settings import Settings
from ..telemetry.logs import listening
from ..telemetry.metrics import Metrics
from .reports import STOP_SIGNALS, Report

__all__ = ["supervise"]

logger = logging.getLogger(__name__)

_LOOK_EVERY = 0.1  # seconds
_SETTLED_AFTER = 0.5  # seconds of serving, after which a worker counts as sound
_MOST_FAILURES = 5  # in a row, of one worker
_LONGEST_PAUSE = 5.0  # seconds before it is started once more


class _Worker:
    """A place for a worker process, and how those in it have fared."""

    def __init__(self, number: int, settings: Settings, metrics: Metrics) -> None:
        self._number = number
        self._settings = settings
        self._metrics = metrics
        self._failures = 0
        self._start_at = 0.0
        self._serving_since: float | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.served = threading.Event()

    def start(self) -> None:
        """Start a process. It has a session of its own: Ctrl-C is for us to pass on."""
        self._serving_since = None
        process = self._process = subprocess.Popen(
            [sys.executable, "-m", "specgen_server.process.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin  # noqa: S101
        try:
            process.stdin.write(msgspec.json.encode(self._settings) + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it died already, which look() finds out
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout  # noqa: S101
        for line in process.stdout:
            report = msgspec.json.decode(line, type=Report)
            self._metrics.add(self._number, report.stats, report.in_flight, report.on_lane)
            if self._serving_since is None and process is self._process:
                self._serving_since = time.monotonic()
                self.served.set()

    def look(self) -> bool:
        """Start the worker again if it died; return False when that has failed too often."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._start_at:
                self.start()
            return True
        code = self._process.poll()
        if code is None:
            return True
        self._close_pipes(self._process)
        self._process = None
        self._metrics.worker_died(self._number)
        sound = self._serving_since and now - self._serving_since >= _SETTLED_AFTER
        self._failures = 0 if sound else self._failures + 1
        pause = 0.0 if sound else min(_LONGEST_PAUSE, 0.1 * 2**self._failures)
        self._start_at = now + pause
        logger.error(
            "worker %d died (%s), starting it again in %.1f s", self._number, _how(code), pause
        )
        return self._failures < _MOST_FAILURES

    def signal(self, number: int) -> None:
        """Send a signal to the process, if there is one."""
        if self._process:
            self._process.send_signal(number)

    def gone(self) -> int | None:
        """Return the exit code once the process has ended, None before."""
        return self._process.poll() if self._process else 0

    @staticmethod
    def _close_pipes(process: subprocess.Popen[bytes]) -> None:
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def supervise(settings: Settings, metrics: Metrics) -> int:
    """Serve with ``settings.workers`` workers until a stop signal; return the exit code.

    The caller has reserved the addresses, and blocked STOP_SIGNALS.
    """
    tcp = tuple(address for address in settings.listen if unix_path(address) is None)
    workers = [
        # a unix socket cannot be shared, so the first worker has those
        _Worker(i, settings if i == 0 else msgspec.structs.replace(settings, listen=tcp), metrics)
        for i in range(settings.workers)
    ]
    for worker in workers:
        worker.start()
    threading.Thread(target=_say_serving, args=(workers, settings), daemon=True).start()
    while signal.sigtimedwait(STOP_SIGNALS, _LOOK_EVERY) is None:
        if not all(worker.look() for worker in workers):
            logger.error("a worker failed %d times in a row: giving up", _MOST_FAILURES)
            _stop(workers)
            return 1
    return _stop(workers)


def _say_serving(workers: list[_Worker], settings: Settings) -> None:
    for worker in workers:
        worker.served.wait()
    for address in settings.listen:
        listening.info("listening on %s with %d workers", address, len(workers))


def _stop(workers: list[_Worker]) -> int:
    """Have all workers drain, all at once; a second stop signal ends them."""
    for worker in workers:
        worker.signal(signal.SIGTERM)
    while any(worker.gone() is None for worker in workers):
        if signal.sigtimedwait(STOP_SIGNALS, _LOOK_EVERY) is not None:
            for worker in workers:
                worker.signal(signal.SIGKILL)
            return 1
    return max(abs(worker.gone() or 0) for worker in workers)


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
