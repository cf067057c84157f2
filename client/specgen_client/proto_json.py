"""Build requests in ProtoJSON, read as its specification has it.

protobuf's own reader takes any text for base64, drops what is none, and takes the last of two
values of a field. Both lose what somebody wrote, in silence.
Specification: https://protobuf.dev/programming-guides/json/
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tvix.build.protos.build_pb2 import BuildRequest

__all__ = ["request_from_json"]

# RFC 4648, in either alphabet; the padding may be left out
_BASE64 = re.compile("(?:[A-Za-z0-9+/]*|[A-Za-z0-9_-]*)={0,2}")
_TO_URLSAFE = str.maketrans("+/", "-_")  # the one alphabet that json_format takes unasked
_SHOWN_CHARS = 40


def request_from_json(text: str) -> BuildRequest:
    """Return the build request of a ProtoJSON text.

    Raises:
        json_format.ParseError: it is none; the text names the field.
    """
    # protobuf takes [] and "" for messages with nothing in them; the BOM json explains itself
    if not text.startswith("\ufeff") and not text.lstrip().startswith("{"):
        raise json_format.ParseError("it is not a JSON object")
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise json_format.ParseError(f"Failed to load JSON: {error}") from None
    _prepare(value, BuildRequest.DESCRIPTOR, "")  # type: ignore[arg-type]
    return json_format.ParseDict(value, BuildRequest())


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise json_format.ParseError(f"{twice} is given twice in one object")
    return found


def _prepare(value: Any, message: Descriptor, path: str) -> None:
    """Check the fields of a message, with all in them, and write bytes in one alphabet."""
    if value is None:
        return  # as if it were not there, but in a list, which json_format says
    if not isinstance(value, dict):
        raise json_format.ParseError(f"{path.rstrip('.')}: a message is an object in JSON")
    spelled: dict[str, str] = {}
    for key in value:
        field = message.fields_by_camelcase_name.get(key) or message.fields_by_name.get(key)
        if field is None:
            continue
        if other := spelled.get(field.name):
            raise json_format.ParseError(
                f"{path}{field.name} is given twice, as {other} and as {key}"
            )
        spelled[field.name] = key
        for holder, at, shown in _elements(value, key, field, f"{path}{field.name}"):
            if field.message_type is not None:
                _prepare(holder[at], field.message_type, f"{shown}.")
            elif field.type == FieldDescriptor.TYPE_STRING and not _is_text(holder[at]):
                raise json_format.ParseError(f"{shown}: a string is text in JSON")
            elif isinstance(holder[at], float) and not math.isfinite(holder[at]):
                raise json_format.ParseError(f"{shown}: {holder[at]} is no number in JSON")
            elif field.type == FieldDescriptor.TYPE_BYTES and holder[at] is not None:
                holder[at] = _bytes(holder[at], shown)


def _elements(
    value: dict[str, Any], key: str, field: FieldDescriptor, path: str
) -> Iterator[tuple[Any, Any, str]]:
    """Yield where the values of a field are: what holds them, at which place, and their path."""
    if not field.is_repeated:
        yield value, key, path
    elif isinstance(value[key], list):
        yield from ((value[key], i, f"{path}[{i}]") for i in range(len(value[key])))
    elif value[key] is not None:
        raise json_format.ParseError(f"{path}: a repeated field is a list in JSON")


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _bytes(value: Any, path: str) -> str:
    shown = json.dumps(value)
    if len(shown) > _SHOWN_CHARS:
        shown = f"{shown[:_SHOWN_CHARS]}..."
    if not isinstance(value, str):
        raise json_format.ParseError(f"{path}: bytes are base64 text in JSON, not {shown}")
    digits = value.rstrip("=")
    padded = len(value) > len(digits)
    if not _BASE64.fullmatch(value) or len(digits) % 4 == 1 or (padded and len(value) % 4):
        raise json_format.ParseError(f"{path}: bytes are base64 in JSON, and {shown} is not base64")
    return value.translate(_TO_URLSAFE)
