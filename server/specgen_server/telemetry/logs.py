"""Log lines, for a person or as JSON: one a call, and what the server says of itself."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable
from typing import Literal

import msgspec

from .stats import CallRecord

__all__ = ["LogFormat", "call_lines", "configure_logging", "listening"]

listening = logging.getLogger("specgen_server.listening")

LogFormat = Literal["human", "json"]


def configure_logging(format_: LogFormat, level: str) -> None:
    """Send all log lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if format_ == "json" else _HumanFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # which address it is must be known at every level, for port 0 above all
    listening.setLevel(logging.INFO)


class _HumanFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record.created)} {record.levelname.lower()}: {record.getMessage()}"
        if request_id := getattr(record, "request_id", ""):
            line += f" request_id={request_id}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "logger": record.name,
        }
        if request_id := getattr(record, "request_id", ""):
            line["request_id"] = request_id
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def call_lines(records: Iterable[CallRecord], format_: LogFormat) -> str:
    """Return a line for each call, at level info."""
    line = _json_line if format_ == "json" else _human_line
    return "".join(line(record) for record in records)


def _human_line(record: CallRecord) -> str:
    caller = f" caller={record.caller}" if record.caller else ""
    return (
        f"{_time(record.ended)} info: {record.method} {record.code} {record.seconds * 1000:.2f}ms "
        f"request={record.request_bytes}B response={record.response_bytes}B "
        f"builds={len(record.builds)} peer={record.peer}{caller} request_id={record.request_id}\n"
    )


def _json_line(record: CallRecord) -> str:
    line = {
        "time": _time(record.ended),
        "level": "info",
        "message": "call",
        "method": record.method,
        "code": record.code,
        "duration_ms": round(record.seconds * 1000, 3),
        "request_bytes": record.request_bytes,
        "response_bytes": record.response_bytes,
        "builds": len(record.builds),
        "peer": record.peer,
        "request_id": record.request_id,
    }
    if record.caller:
        line["caller"] = record.caller
    return msgspec.json.encode(line).decode() + "\n"


def _time(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds * 1000) % 1000:03d}Z"
