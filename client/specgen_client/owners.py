"""Whose the parts of a bundle are."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from specgen_core import BUILD_GID, BUILD_UID, oci

from .user_namespace import CannotMap, chown_to_subordinate

__all__ = ["build_owner", "give_away", "has_user_namespace"]


def has_user_namespace(spec: oci.Spec) -> bool:
    """Return whether the sandbox's ids are others on the host."""
    return any(namespace.type == "user" for namespace in spec.linux.namespaces)


def build_owner(spec: oci.Spec) -> tuple[int, int] | None:
    """Return the build's user as the host sees it, or None where it is not mapped."""
    if not has_user_namespace(spec):
        return BUILD_UID, BUILD_GID
    uid = _on_host(spec.linux.uid_mappings, BUILD_UID)
    gid = _on_host(spec.linux.gid_mappings, BUILD_GID)
    return None if uid is None or gid is None else (uid, gid)


def _on_host(mappings: tuple[oci.IdMap, ...], container_id: int) -> int | None:
    for mapping in mappings:
        offset = container_id - mapping.container_id
        if 0 <= offset < mapping.size:
            return mapping.host_id + offset
    return None


def give_away(
    scratch: list[str], owner: tuple[int, int] | None, *, rootless: bool
) -> Iterator[str]:
    """Give the scratch directories to the build's user, without being root.

    In a user namespace the build can write to them as well while they are still ours, by
    CAP_DAC_OVERRIDE, so there nothing is lost where it cannot be done.
    """
    if owner is None or owner == (os.geteuid(), os.getegid()) or not scratch:
        return
    if not rootless:
        yield (
            "the scratch directories are yours, and a rootful build, as uid "
            f"{BUILD_UID}, cannot write there: write this bundle as root"
        )
        return
    with contextlib.suppress(CannotMap):
        chown_to_subordinate(*owner, scratch)
