"""What a worker reports to whoever serves its metrics, and the signals both go by."""

from __future__ import annotations

import signal

import msgspec

from ..telemetry.stats import CallStats

__all__ = ["STOP_SIGNALS", "Report"]

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Report(msgspec.Struct):
    """A worker lives, and has counted this since it last said so."""

    stats: CallStats
    in_flight: int
    on_lane: bool = False
    """Whether its calls come in by the call lane."""
