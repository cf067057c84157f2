"""How a call's SpecOptions message, or its metadata entry, overrides the server's options."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

from google.protobuf import json_format

from specgen.v1.specgen_pb2 import SpecOptions as SpecOptionsMessage
from specgen_core import IdMapping, InvalidRequest, Nofile, Resources, SpecOptions, Violation
from specgen_core.options import MOST_DEVICES, MOST_MAPPINGS
from specgen_core.text import printable

__all__ = ["METADATA_KEY", "MOST_METADATA_BYTES", "options_of_message", "options_of_metadata"]

METADATA_KEY = "specgen-options"

# gRPC refuses metadata at random from 8 KiB on, unless told otherwise, and a server must leave
# room for entries of others. The options of a bulk call's messages have no such limit.
MOST_METADATA_BYTES = 8 * 1024

_LIKENESS = 0.8  # of 1: specgen_options, specgen-option and x-specgen-options are beyond it
_LONGEST_ALIKE = 32


def options_of_message(message: SpecOptionsMessage, defaults: SpecOptions) -> SpecOptions:
    """Return ``defaults`` with what the message sets in their place.

    Raises:
        InvalidRequest: the options that come of it cannot be.
    """

    def given(field: str) -> Any:
        return getattr(message, field) if message.HasField(field) else None

    nofile, resources = given("nofile"), given("resources")
    return defaults.override(
        rootless=given("rootless"),
        sandbox_shell=given("sandbox_shell"),
        terminal=given("terminal"),
        cgroup_namespace=given("cgroup_namespace"),
        uid_mappings=_mappings(message.uid_mappings),
        gid_mappings=_mappings(message.gid_mappings),
        profile=given("profile"),
        nofile=nofile and Nofile(nofile.soft, nofile.hard),
        drop_capabilities=given("drop_capabilities"),
        tmp_mode=given("tmp_mode"),
        devices=message.devices[: MOST_DEVICES + 1],
        device_rules=given("device_rules"),
        resources=resources
        and Resources(
            resources.memory_bytes,
            resources.cpu_quota_us,
            resources.cpu_period_us,
            resources.pids,
        ),
        cgroups_path=given("cgroups_path"),
        seccomp=given("seccomp"),
        personality=given("personality"),
        skeleton=given("skeleton"),
    )


def _mappings(messages: Any) -> list[IdMapping]:
    """Return id mappings, at most one more than is allowed."""
    return [IdMapping(m.container_id, m.host_id, m.size) for m in messages[: MOST_MAPPINGS + 1]]


def options_of_metadata(
    metadata: Iterable[tuple[str, str | bytes]], defaults: SpecOptions
) -> SpecOptions:
    """Return ``defaults`` with what a call's metadata entry sets in their place.

    Raises:
        InvalidRequest: there is more than one entry, or one with nearly this name; it is too
            long or no SpecOptions in ProtoJSON; or the options that come of it cannot be.
    """
    entries = []
    for key, value in metadata:
        if key == METADATA_KEY:
            entries.append(value)
        elif len(key) <= _LONGEST_ALIKE and _is_alike(key):
            raise _refused(f"is the name of the entry with options: {printable(key)} is not")
    if not entries:
        return defaults
    if len(entries) > 1:
        raise _refused("is given more than once: put all options into one entry")
    if len(entries[0]) > MOST_METADATA_BYTES:
        raise _refused(
            f"has {len(entries[0])} bytes, and may have {MOST_METADATA_BYTES}: give long options "
            "in a bulk call's message, or to the server"
        )
    return _options_of_json(entries[0], defaults)


@lru_cache(maxsize=256)  # callers send the same few keys with every call
def _is_alike(key: str) -> bool:
    """Whether whoever wrote this meant METADATA_KEY."""
    return SequenceMatcher(None, _letters(key), _letters(METADATA_KEY)).ratio() >= _LIKENESS


def _letters(key: str) -> str:
    return "".join(filter(str.isalpha, key.lower()))


@lru_cache(maxsize=128)  # a coordinator sends the same entry with every call
def _options_of_json(entry: str | bytes, defaults: SpecOptions) -> SpecOptions:
    message = SpecOptionsMessage()
    try:
        text = entry if isinstance(entry, str) else entry.decode()
        if not text.strip().startswith("{"):  # json_format takes a list for a message
            raise ValueError
        json_format.Parse(text, message)
    except (json_format.ParseError, UnicodeDecodeError, RecursionError, ValueError):
        known = ", ".join(field.name for field in message.DESCRIPTOR.fields)
        raise _refused(
            "must be specgen.v1.SpecOptions as ProtoJSON, "
            f'such as {{"rootless": false}}; its fields are {known}'
        ) from None
    return options_of_message(message, defaults)


def _refused(description: str) -> InvalidRequest:
    return InvalidRequest([Violation(METADATA_KEY, description)], 1)
