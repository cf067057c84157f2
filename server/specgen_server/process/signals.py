"""The signals that stop a server, supervisor and worker alike."""

from __future__ import annotations

import signal
import time

__all__ = ["block_stop_signals", "stop_signalled"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SAME_WITHIN = 1.0  # seconds
_latest: dict[int, float] = {}


def block_stop_signals() -> None:
    """Leave them to ``stop_signalled``: call it before any thread is there, as all inherit it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def stop_signalled(seconds: float) -> bool:
    """Wait that long, at most, for a stop signal; return whether one came.

    The same signal twice within a second is one: a terminal, a service manager and a
    supervisor may all send it to a process.
    """
    until = time.monotonic() + seconds
    while got := signal.sigtimedwait(_SIGNALS, max(0.0, until - time.monotonic())):
        now = time.monotonic()
        before = _latest.get(got.si_signo)
        _latest[got.si_signo] = now
        if before is None or now - before > _SAME_WITHIN:
            return True
    return False
