"""Whose the parts of a bundle are, and who may enter it."""

from __future__ import annotations

import contextlib
import os

from specgen_core import BUILD_GID, BUILD_UID, oci

from .bundle_error import BundleError
from .directories import open_below
from .user_namespace import CannotMap, chown_to_subordinate

__all__ = ["build_owner", "close_to_others", "give_away", "has_user_namespace", "on_host"]


def has_user_namespace(spec: oci.Spec) -> bool:
    """Return whether the sandbox's ids are others on the host."""
    return any(namespace.type == "user" for namespace in spec.linux.namespaces)


def build_owner(spec: oci.Spec) -> tuple[int, int] | None:
    """Return the build's user as the host sees it, or None where it is not mapped."""
    return on_host(spec, BUILD_UID, BUILD_GID)


def on_host(spec: oci.Spec, uid: int, gid: int) -> tuple[int, int] | None:
    """Return ids of the sandbox as the host sees them, or None where they are not mapped."""
    if not has_user_namespace(spec):
        return uid, gid
    host_uid = _mapped(spec.linux.uid_mappings, uid)
    host_gid = _mapped(spec.linux.gid_mappings, gid)
    return None if host_uid is None or host_gid is None else (host_uid, host_gid)


def _mapped(mappings: tuple[oci.IdMap, ...], container_id: int) -> int | None:
    for mapping in mappings:
        offset = container_id - mapping.container_id
        if 0 <= offset < mapping.size:
            return mapping.host_id + offset
    return None


def close_to_others(directory: int, spec: oci.Spec) -> None:
    """Let nobody into a bundle but its owner and the sandbox's root, by its group.

    What builds leave can be a setuid program, whoever it belongs to; so no local user may
    reach it. The runtime enters the bundle as root of the sandbox, who in a user namespace
    may be neither the owner nor root of the host.

    Args:
        directory: descriptor of the bundle's directory, which must be ours.
        spec: the bundle's config.json.

    Raises:
        BundleError: the sandbox's root has a group that cannot be given.
        OSError: the directory's mode cannot be set.
    """
    for acl in ("system.posix_acl_access", "system.posix_acl_default"):
        with contextlib.suppress(OSError):  # it has none: see acl(5)
            os.removexattr(directory, acl)
    os.fchmod(directory, 0o700)
    owner = os.fstat(directory).st_uid
    uid, gid = _mapped(spec.linux.uid_mappings, 0), _mapped(spec.linux.gid_mappings, 0)
    if not has_user_namespace(spec) or uid == owner or gid is None:
        return
    try:
        if os.geteuid() == 0:
            os.fchown(directory, -1, gid)
        else:
            chown_to_subordinate(owner, gid, directory, only_itself=True)
    except OSError as error:
        raise BundleError(
            "this user namespace has too few ids, see /proc/self/gid_map: the gid"
            f" {gid} of the sandbox's root is not among them ({error.strerror})"
        ) from None
    except CannotMap as error:
        raise BundleError(
            f"the sandbox's root must enter it, by its gid {gid} of this host: {error}"
        ) from None
    os.fchmod(directory, 0o710)


def give_away(bundle: int, owner: tuple[int, int] | None) -> None:
    """Give the scratch directories to the build's user, without being root.

    In a user namespace the build can write to them as well while they are still ours, by
    CAP_DAC_OVERRIDE, so there nothing is lost where it cannot be done.
    """
    scratch = open_below(bundle, "scratch")
    try:
        if owner is not None and owner != (os.geteuid(), os.getegid()) and os.listdir(scratch):  # noqa: PTH208
            with contextlib.suppress(CannotMap):
                chown_to_subordinate(*owner, scratch)
    finally:
        os.close(scratch)
