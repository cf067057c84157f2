"""Bounds on what one message can make this server do, checked before anything is made of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from specgen.v1.specgen_pb2 import GenerateSpecsRequest, SpecOptions
from specgen_core import Request
from tvix.build.protos.build_pb2 import BuildRequest

from .errors import TooLarge, TooMany
from .lingering import LARGE

__all__ = ["MessageLimits", "is_light_bulk"]

_FIELDS_TO_ELEMENTS = 4
"""A message may have more fields than elements, but not without end: each takes time."""

_SMALL = 16 * 1024  # bytes
_FEW_PATHS = 64  # each is looked at by many rules

_LARGE_ANSWER = 8 * 1024 * 1024
_ANSWER_TO_REQUEST = 4
"""An answer may take 8 MiB, or so many times its request: what it is made of takes no more."""


class MessageLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much a message may hold, and how large its answer may be.

    The numbers keep what a message takes in memory below 12 times its size, see
    docs/operations.md.
    """

    max_message_bytes: int = 64 * 1024 * 1024
    max_elements: int = 15_000
    """Inputs, arguments, environment variables, needles."""
    max_paths: int = 4_096
    """Scratch paths, outputs, read-only paths, additional files."""
    max_builds: int = 10_000
    """Requests in one message of a bulk call."""

    def check_request(self, wire: bytes) -> int:
        """Raise TooMany for a BuildRequest with a list that is too long; else count its paths."""
        counts = self._check(wire, _BUILD_TAGS, _BUILD_LISTS)
        paths = sum(counts[tag] for tag in _BUILD_PATHS)
        if counts[_CONSTRAINTS]:
            merged = _merged(wire, _CONSTRAINTS)
            counts = self._check(merged, _CONSTRAINTS_TAGS, _CONSTRAINTS_LISTS)
            paths += sum(counts[tag] for tag in _CONSTRAINTS_LISTS)
        return paths

    def takes_long(self, wire: bytes) -> bool:
        """Whether the plain way may take more than few milliseconds to answer a BuildRequest."""
        return len(wire) > _SMALL or self.check_request(wire) > _FEW_PATHS

    def check_bulk(self, wire: bytes) -> None:
        """Raise TooMany for a GenerateSpecsRequest with too many builds."""
        self._check(wire, _BULK_TAGS, _BULK_LISTS)

    def check_options(self, wire: bytes) -> None:
        """Raise TooMany for a GenerateSpecsRequest's SpecOptions with a list that is too long."""
        self._check(wire, _OPTIONS_TAGS, _OPTIONS_LISTS)

    def _check(
        self, wire: bytes, tags: frozenset[int], lists: Mapping[int, tuple[str, str]]
    ) -> dict[int, int]:
        most_fields = self.max_elements * _FIELDS_TO_ELEMENTS
        counts = _counts(wire, tags, most_fields)
        for tag, (field, limit) in lists.items():
            most: int = getattr(self, limit)
            if counts[tag] > most:
                raise TooMany(field, most, f"--{limit.replace('_', '-')}")
        if sum(counts.values()) > most_fields:
            raise TooMany("the message", most_fields, "--max-elements, of which it is four times")
        return counts

    def check_size(self, size: int, wire_size: int) -> None:
        """Raise TooLarge for an answer of so many bytes to a message of so many."""
        if size <= _LARGE_ANSWER and size <= self.max_message_bytes:
            return
        if size > self.max_message_bytes:
            raise TooLarge(size, self.max_message_bytes, "--max-message-bytes")
        most = max(_LARGE_ANSWER, wire_size * _ANSWER_TO_REQUEST)
        if size > most:
            raise TooLarge(size, most, f"{_ANSWER_TO_REQUEST} times the request, or 8 MiB")

    def check_answer(self, request: Request, wire_size: int) -> None:
        """Raise TooLarge where the answer to a request is too large for certain."""
        self.check_size(least_answer_bytes(request), wire_size)


# --- counting elements on the wire ----------------------------------------------------
# protobuf makes an object of each element before it can be asked how many there are: of two
# million empty ones, that takes a hundred times their bytes.

_LENGTH_DELIMITED = 2
_OTHER = 0  # the tag under which all else is counted: no field has the number 0


def _tag(number: int) -> int:
    return number << 3 | _LENGTH_DELIMITED


def _tags(message: Any) -> frozenset[int]:
    return frozenset(_tag(field.number) for field in message.fields)


def _lists(message: Any, within: str, limits: Mapping[str, str]) -> dict[int, tuple[str, str]]:
    return {
        _tag(message.fields_by_name[name].number): (within + name, limit)
        for name, limit in limits.items()
    }


_BUILD_TAGS = _tags(BuildRequest.DESCRIPTOR)
_BUILD_LISTS = _lists(
    BuildRequest.DESCRIPTOR,
    "",
    {
        **dict.fromkeys(("inputs", "command_args", "environment_vars"), "max_elements"),
        "refscan_needles": "max_elements",
        **dict.fromkeys(("scratch_paths", "outputs", "additional_files"), "max_paths"),
    },
)
_BUILD_PATHS = [tag for tag, (_, limit) in _BUILD_LISTS.items() if limit == "max_paths"]
_CONSTRAINTS = _tag(BuildRequest.CONSTRAINTS_FIELD_NUMBER)
_CONSTRAINTS_TAGS = _tags(BuildRequest.BuildConstraints.DESCRIPTOR)
_CONSTRAINTS_LISTS = _lists(
    BuildRequest.BuildConstraints.DESCRIPTOR,
    "constraints.",
    {"available_ro_paths": "max_paths"},
)
_BULK_TAGS = _tags(GenerateSpecsRequest.DESCRIPTOR)
_BULK_LISTS = _lists(GenerateSpecsRequest.DESCRIPTOR, "", {"requests": "max_builds"})
_OPTIONS_TAGS = _tags(SpecOptions.DESCRIPTOR)
_OPTIONS_LISTS = _lists(
    SpecOptions.DESCRIPTOR,
    "options.",
    dict.fromkeys(("uid_mappings", "gid_mappings", "devices"), "max_paths"),
)


def _counts(wire: bytes, tags: frozenset[int], most_others: int) -> dict[int, int]:
    """Return how often each of these tags occurs; fields of other kinds together, as tag 0.

    Of those it counts no more than ``most_others`` and one.

    A message that is cut short is counted up to there: the parser will say what is wrong.
    Source: protobuf.dev/programming-guides/encoding.
    """
    counts = dict.fromkeys((*tags, _OTHER), 0)
    at, end = 0, len(wire)
    try:
        while at < end:
            tag, size = wire[at], wire[at + 1]
            if tag < 0x80 and size < 0x80 and tag in tags:
                counts[tag] += 1
                at += size + 2
            else:
                tag, at = _next_field(wire, at)
                counts[tag if tag in tags else _OTHER] += 1
                if counts[_OTHER] > most_others:
                    break
    except IndexError:
        pass
    return counts


def is_light_bulk(wire: bytes) -> bool:
    """Whether a GenerateSpecsRequest has few builds, and small ones."""
    if len(wire) > _MOST_LIGHT:
        return False
    at = 0
    try:
        for _ in range(_FEW):
            if at >= len(wire):
                return True
            before = at
            _, at = _next_field(wire, at)
            if at - before > LARGE:
                return False
    except IndexError:
        return True  # it will not parse
    return at >= len(wire)


_FEW = 17  # fields: 16 builds, and options
_MOST_LIGHT = 4 * LARGE  # bytes


def _next_field(wire: bytes, at: int) -> tuple[int, int]:
    """Return the tag of the field that begins here, and where the next one does."""
    tag, at = _varint(wire, at)
    kind = tag & 7
    if kind == 0:
        _, at = _varint(wire, at)
    elif kind == 1:
        at += 8
    elif kind == _LENGTH_DELIMITED:
        size, at = _varint(wire, at)
        at += size
    elif kind == 5:
        at += 4
    return tag, at  # groups begin and end without a size


def _varint(wire: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        octet = wire[at]
        at += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError


def _merged(wire: bytes, wanted: int) -> bytes:
    """Return what occurs of a submessage, by its tag, joined: so protobuf merges its parts."""
    parts = []
    at = 0
    try:
        while at < len(wire):
            tag, after = _next_field(wire, at)
            if tag == wanted:
                _, head = _varint(wire, at)
                _, head = _varint(wire, head)
                parts.append(wire[head:after])
            at = after
    except IndexError:
        pass
    return b"".join(parts)


# --- how large an answer is -----------------------------------------------------------

_MOUNT = len('{"destination":"/","type":"none","source":"","options":["rbind","rw"]},')
_LONG = 4096
_ESCAPED = re.compile(r"[\x00-\x07\x0b\x0e-\x1f]+")
_ESCAPED_BYTES = len(r"\u0000")


def least_answer_bytes(request: Request) -> int:
    """Return a lower bound of the answer's length, in bytes."""
    mounted = [*request.scratch_paths, *request.constraints.available_ro_paths]
    texts: Iterable[str] = (
        request.working_dir,
        *request.command_args,
        *(variable.value for variable in request.environment),
        *mounted,
        *(output.path for output in request.outputs),
    )
    in_inputs = len(request.inputs) * (_MOUNT + _json_bytes(request.inputs_dir))
    in_inputs += 2 * sum(map(len, request.inputs))
    return sum(map(_json_bytes, texts)) + len(mounted) * _MOUNT + in_inputs


def _json_bytes(text: str) -> int:
    """Return a lower bound of a text's length in JSON, which escapes what drives a terminal."""
    if len(text) < _LONG:
        return len(text)
    escaped = sum(found.end() - found.start() for found in _ESCAPED.finditer(text))
    return len(text) + escaped * (_ESCAPED_BYTES - 1)
