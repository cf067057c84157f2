"""The spec that a bundle is written for, which may come from an untrusted server."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from specgen_core import oci
from specgen_core.paths import path_problems

from .bundle_error import BundleError

__all__ = ["decoded"]

_MAX_ID = 2**32 - 2  # the next one means "no id", see chown(2)
_MODE = re.compile("[0-7]{1,5}")


def decoded(json: str) -> oci.Spec:
    """Return a spec of which a bundle can be made.

    Raises:
        BundleError: it is no config.json of this service, or holds what none can be made of.
    """
    try:
        spec = oci.decode(json)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BundleError(f"the spec is no config.json of this service: {error}") from None
    for problem in _problems(spec):
        raise BundleError(f"the spec is no config.json of this service: {problem}")
    return spec


def _problems(spec: oci.Spec) -> Iterator[str]:
    if spec.root.path != "root":
        yield f"root.path must be root, is {spec.root.path[:60]}"
    yield from _no_path("process.cwd", spec.process.cwd)
    if not spec.process.cwd.startswith("/"):
        yield "process.cwd must be absolute"
    for i, mount in enumerate(spec.mounts):
        yield from _no_path(f"mounts[{i}].destination", mount.destination)
        yield from _no_path(f"mounts[{i}].source", mount.source)
        in_bundle = mount.type == "none" and not mount.source.startswith("/")
        if in_bundle and path_problems(mount.source):
            yield f"mounts[{i}].source is {mount.source[:60]}, which is no path in a bundle"
        for option in mount.options:
            mode = option.removeprefix("mode=")
            if mount.type == "tmpfs" and mode != option and not _MODE.fullmatch(mode):
                yield f"mounts[{i}].options: a mode must be octal digits, is {mode[:60]}"
    for kind, mappings in (("uid", spec.linux.uid_mappings), ("gid", spec.linux.gid_mappings)):
        for i, mapping in enumerate(mappings):
            firsts = (mapping.container_id, mapping.host_id)
            if min(firsts) < 0 or mapping.size < 1 or max(firsts) + mapping.size - 1 > _MAX_ID:
                yield f"linux.{kind}Mappings[{i}] must have ids of 0 to {_MAX_ID}"


def _no_path(field: str, path: str) -> Iterator[str]:
    try:
        path.encode()
    except UnicodeEncodeError:
        yield f"{field} is not UTF-8"
    if "\0" in path:
        yield f"{field} must not contain a NUL"
