"""Several workers on the same addresses, each a process of its own.

The kernel deals new connections out to them (SO_REUSEPORT). This process has no gRPC in it:
it starts the workers, replaces those that die or fall silent, passes signals on, and adds up
what they count. It is one loop: nothing that a worker does or leaves undone can hold it up.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec

from .. import child_process
from ..addresses import unix_path
from ..settings import Settings
from ..telemetry.logs import listening
from ..telemetry.metrics import Metrics
from .reports import MOST_REPORT_BYTES, Report
from .signals import stop_signalled

__all__ = ["supervise"]

logger = logging.getLogger(__name__)

_LOOK_EVERY = 0.1  # seconds
# Silence is counted in looks, not by the clock: were this process stopped for a while, its
# workers would seem silent.
_MOST_SILENT_LOOKS = 100  # of a worker that serves: it reports five times a second
_MOST_STARTING_LOOKS = 600
_SETTLED_AFTER = 0.5  # seconds of serving, after which a worker counts as sound
_MOST_FAILURES = 5  # in a row, of one worker, before any has ever served
_LONGEST_PAUSE = 2.0  # seconds before it is started once more
_LAST_RESORT = 3.0  # seconds beyond the grace, after which workers are killed


class _Worker:
    """A place for a worker process, and how those in it have fared."""

    def __init__(self, number: int, settings: Settings, metrics: Metrics) -> None:
        self.failures = 0
        """In a row."""
        self.has_served = False
        self._number = number
        self._settings = settings
        self._metrics = metrics
        self._start_at = 0.0
        self._serving_since: float | None = None
        self._silent_looks = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._reports: socket.socket | None = None

    def restart_if_dead(self) -> None:
        """Start a process, or another one, where there is none."""
        if self._process and (code := self._process.poll()) is not None:
            self.receive_reports()  # what it counted last
            self._process = None
            self._metrics.worker_died(self._number)
            self._failed(f"died ({child_process.how_it_ended(code)})")
        if self._process is None and time.monotonic() >= self._start_at:
            self._start()

    def kill_if_silent(self) -> None:
        """Kill the process if it has reported nothing for too many looks."""
        self._silent_looks += 1
        most = _MOST_SILENT_LOOKS if self._serving_since else _MOST_STARTING_LOOKS
        if self._process and self._silent_looks > most:
            logger.error("worker %d is silent: killing it", self._number)
            self.signal(signal.SIGKILL)
            self._silent_looks = 0

    def receive_reports(self) -> None:
        """Take in what the process has counted, and that it lives."""
        while self._reports:
            try:
                report = self._reports.recv(MOST_REPORT_BYTES, socket.MSG_DONTWAIT)
            except OSError:  # nothing there, or the process is gone
                return
            if not report:
                return
            try:
                counted = msgspec.json.decode(report, type=Report)
            except msgspec.MsgspecError:
                continue  # something printed there
            self._metrics.add(self._number, counted.stats, counted.in_flight, counted.on_lane)
            self._silent_looks = 0
            self.has_served = True
            self._serving_since = self._serving_since or time.monotonic()

    def _start(self) -> None:
        """Start a process.

        It has a process group of its own, for Ctrl-C is for us to pass on; but not a session:
        Linux gives each one a share of the processor (autogroups), and between those of a
        busy machine workers were seen to get nothing for half a minute.
        """
        self._serving_since = None
        self._silent_looks = 0
        if self._reports:
            self._reports.close()
        try:
            self._reports, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = child_process.start(
                    "specgen_server.process.worker",
                    settings=self._settings,
                    stdout=theirs.fileno(),
                    process_group=0,
                )
        except (OSError, MemoryError) as error:
            self._failed(f"cannot be started ({error})")

    def _failed(self, how: str) -> None:
        now = time.monotonic()
        sound = self._serving_since and now - self._serving_since >= _SETTLED_AFTER
        self.failures = 0 if sound else self.failures + 1
        pause = 0.0 if sound else min(_LONGEST_PAUSE, 0.1 * 2**self.failures)
        self._start_at = now + pause
        logger.error("worker %d %s, starting it again in %.1f s", self._number, how, pause)

    def signal(self, number: int) -> None:
        """Send a signal to the process, if there is one."""
        if self._process:
            self._process.send_signal(number)

    def is_process(self, pid: int) -> bool:
        """Return whether the process is this one, alive or not."""
        return self._process is not None and self._process.pid == pid

    def exit_code(self) -> int | None:
        """Return the exit code once the process has ended, None before."""
        self.receive_reports()
        return self._process.poll() if self._process else 0


def supervise(settings: Settings, metrics: Metrics, dropped: Callable[[], int]) -> int:
    """Serve with ``settings.workers`` workers until a stop signal; return the exit code.

    It gives up only while no worker has ever served; later, whatever fails is tried again.

    Args:
        settings: addresses in them are reserved by the caller.
        metrics: gets what the workers count.
        dropped: returns how many log lines were dropped since it was last called.
    """
    tcp = tuple(address for address in settings.listen if unix_path(address) is None)
    workers = [
        # a unix socket cannot be shared, so the first worker has those
        _Worker(i, settings if i == 0 else msgspec.structs.replace(settings, listen=tcp), metrics)
        for i in range(settings.workers)
    ]
    said = False
    while True:
        for worker in workers:
            worker.receive_reports()
            worker.kill_if_silent()
            worker.restart_if_dead()
        _let_adopted_go(workers)
        metrics.log_lines_dropped(dropped())
        serving = [worker for worker in workers if worker.has_served]
        if not said and serving and all(w.has_served or w.failures for w in workers):
            said = True
            for address in settings.listen:
                listening.info("listening on %s with %d workers", address, len(serving))
        if not serving and any(worker.failures >= _MOST_FAILURES for worker in workers):
            logger.error("a worker failed %d times in a row: giving up", _MOST_FAILURES)
            _end(workers, signal.SIGKILL)
            return 1
        if stop_signalled(_LOOK_EVERY):
            return _stop(workers, settings)


def _stop(workers: list[_Worker], settings: Settings) -> int:
    """Have all workers drain, all at once; a second stop signal ends them, and so does time."""
    until = time.monotonic() + settings.drain_delay + settings.grace + _LAST_RESORT
    _end(workers, signal.SIGTERM)
    while any(worker.exit_code() is None for worker in workers):
        if stop_signalled(_LOOK_EVERY):
            _end(workers, signal.SIGKILL)
            return 1
        if time.monotonic() > until:
            logger.error("killing the workers that have not ended")
            _end(workers, signal.SIGKILL)
    return 1 if any(worker.exit_code() for worker in workers) else 0


def _let_adopted_go(workers: list[_Worker]) -> None:
    """Let processes end that became ours when their worker died, as this is a container's first."""
    with suppress(ChildProcessError):  # there is no process at all
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if any(worker.is_process(ended.si_pid) for worker in workers):
                return  # its end is for restart_if_dead to see, at the next look
            os.waitpid(ended.si_pid, 0)


def _end(workers: list[_Worker], number: int) -> None:
    for worker in workers:
        worker.signal(number)
