"""What a worker reports to whoever serves its metrics."""

from __future__ import annotations

import msgspec

from ..telemetry.stats import CallStats

__all__ = ["MOST_REPORT_BYTES", "Report"]

MOST_REPORT_BYTES = 128 * 1024  # as JSON; it has some kB


class Report(msgspec.Struct):
    """A worker lives, and has counted this since it last said so."""

    stats: CallStats
    in_flight: int
