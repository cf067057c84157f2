"""Options as a message, for a server."""

from __future__ import annotations

import msgspec

from specgen.v1.specgen_pb2 import IdMapping, Nofile, Resources, SpecOptions
from specgen_core.options import GivenOptions

__all__ = ["options_message"]


def options_message(given: GivenOptions) -> SpecOptions:
    """Return just what is given; the server has its own for the rest."""
    message = SpecOptions(devices=given.get("devices", ()))
    for mappings, to in (
        (given.get("uid_mappings", ()), message.uid_mappings),
        (given.get("gid_mappings", ()), message.gid_mappings),
    ):
        to.extend(IdMapping(**msgspec.structs.asdict(mapping)) for mapping in mappings)
    if nofile := given.get("nofile"):
        message.nofile.CopyFrom(Nofile(**msgspec.structs.asdict(nofile)))
    if resources := given.get("resources"):
        message.resources.CopyFrom(Resources(**msgspec.structs.asdict(resources)))
    for field, value in given.items():
        if isinstance(value, bool | str):
            setattr(message, field, value)
    return message
