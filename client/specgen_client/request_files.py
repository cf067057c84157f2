"""Build requests from files: binary protobuf, ProtoJSON or text format."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from google.protobuf import json_format, text_format
from google.protobuf.message import DecodeError

from tvix.build.protos.build_pb2 import BuildRequest

from .proto_json import request_from_json

__all__ = ["FORMATS", "RequestFileError", "read_request_file"]

Format = Literal["binary", "json", "text"]
FORMATS: tuple[Format, ...] = ("binary", "json", "text")

_SHOWN_CHARS = 300

_FORMAT_OF_ENDING: dict[str, Format] = {
    ".pb": "binary",
    ".binpb": "binary",
    ".bin": "binary",
    ".json": "json",
    ".txtpb": "text",
    ".textpb": "text",
    ".textproto": "text",
    ".pbtxt": "text",
    ".txt": "text",
}


class RequestFileError(Exception):
    """A file that no request can be read from; its text is a sentence for a person."""


def read_request_file(name: str, format_: Format | None = None) -> BuildRequest:
    """Read a build request from a file, or from standard input for ``-``.

    Without a format the file's ending tells it; what has no known ending is ProtoJSON where
    it starts with a brace, which no binary request does, and else binary.

    Raises:
        RequestFileError: it cannot be read, is empty, or is not in that format.
    """
    shown = "standard input" if name == "-" else name
    data = _contents(name, shown)
    if not data.strip():
        raise RequestFileError(f"{shown} is empty: a BuildRequest is expected")
    if format_ is None:
        format_ = _FORMAT_OF_ENDING.get(Path(name).suffix.lower())
    if format_ is None:
        format_ = "json" if data.lstrip().startswith(b"{") else "binary"
    try:
        return _PARSERS[format_](data)
    except (
        DecodeError,
        UnicodeDecodeError,
        json_format.ParseError,
        text_format.ParseError,
    ) as error:
        why = _why(error)
        raise RequestFileError(
            f"{shown} is not a BuildRequest in {_NAMES[format_]}{why}"
            f" (--format NAME reads it as another one: {', '.join(FORMATS)})"
        ) from None


def _contents(name: str, shown: str) -> bytes:
    if name == "-" and sys.stdin is None:  # it was closed before we came
        raise RequestFileError(f"cannot read {shown}: it is closed")
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise RequestFileError(f"cannot read {shown}: {error.strerror}") from None


def _why(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return ": it is not UTF-8"
    first_line = next(iter(str(error).splitlines()), "")[:_SHOWN_CHARS]
    # protobuf's own decoder does not say why
    return f": {first_line}" if first_line and not isinstance(error, DecodeError) else ""


_PARSERS: dict[Format, Callable[[bytes], BuildRequest]] = {
    "binary": BuildRequest.FromString,
    "json": lambda data: request_from_json(data.decode()),
    "text": lambda data: text_format.Parse(data.decode(), BuildRequest()),
}
_NAMES: dict[Format, str] = {
    "binary": "binary protobuf",
    "json": "ProtoJSON",
    "text": "protobuf text format",
}
