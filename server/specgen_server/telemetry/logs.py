"""Log lines, for a person or as JSON: one a call, and what the server says of itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Literal

import msgspec

from specgen_core.text import printable

from .log_output import LogOutput
from .stats import CallRecord

__all__ = ["LogFormat", "call_lines", "configure_logging", "listening", "name_of"]

listening = logging.getLogger("specgen_server.listening")

LogFormat = Literal["human", "json"]

_LONGEST_NAME = 128  # characters


def name_of(text: str) -> str:
    """Return what callers call themselves or their calls, in a form that can be logged."""
    return printable(text[:_LONGEST_NAME])


def configure_logging(format_: LogFormat, level: str, output: LogOutput) -> None:
    """Send all log lines to ``output``."""
    handler = _Handler(output)
    handler.setFormatter(_JsonFormatter() if format_ == "json" else _HumanFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # which address it is must be known at every level, for port 0 above all
    listening.setLevel(logging.INFO)


class _Handler(logging.Handler):
    def __init__(self, output: LogOutput) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        self._output.write(self.format(record) + "\n")


class _HumanFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = printable(record.getMessage())
        line = f"{_time(record.created)} {record.levelname.lower()}: {message}"
        if request_id := getattr(record, "request_id", ""):
            line += f" request_id={_word(request_id)}"
        if record.exc_info:
            line += "\n" + _printable_lines(self.formatException(record.exc_info))
        return line


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "message": printable(record.getMessage()),
            "logger": record.name,
        }
        if request_id := getattr(record, "request_id", ""):
            line["request_id"] = request_id
        if record.exc_info:
            line["traceback"] = _printable_lines(self.formatException(record.exc_info))
        return msgspec.json.encode(line).decode()


def _printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def call_lines(records: Iterable[CallRecord], format_: LogFormat) -> str:
    """Return a line for each call, at level info."""
    line = _json_line if format_ == "json" else _human_line
    return "".join(line(record) for record in records)


def _human_line(record: CallRecord) -> str:
    field = f" field={_word(record.field)}" if record.field else ""
    caller = f" caller={_word(record.caller)}" if record.caller else ""
    return (
        f"{_time(record.ended)} info: {record.method} {record.code} {record.seconds * 1000:.2f}ms "
        f"request={record.request_bytes}B response={record.response_bytes}B "
        f"builds={len(record.builds)}{field} peer={record.peer}{caller} "
        f"request_id={_word(record.request_id)}\n"
    )


def _word(text: str) -> str:
    """Return a value that cannot pass for several, or for other parts of its line."""
    return msgspec.json.encode(text).decode() if any(c in text for c in ' "=') else text


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
    if record.field:
        line["field"] = record.field
    if record.caller:
        line["caller"] = record.caller
    return msgspec.json.encode(line).decode() + "\n"


def _time(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds * 1000) % 1000:03d}Z"
