"""Whether what a spec mounts is on this host, and can be mounted."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from specgen_core import oci

from .host_rule import MOST_NAMED, HostBuild, HostFindings, HostRules, listed
from .owners import on_host

RULES = HostRules()


@RULES.add(
    "no-inputs",
    "inputs/ is empty: lay the {count} inputs there, each under its name, before the build runs",
    proven_by=("test_empty_inputs_are_said",),
)
def _no_inputs(build: HostBuild) -> HostFindings:
    """The request has inputs, and no ``--inputs DIR`` is given."""
    if build.request.inputs and build.inputs is None:
        yield {"count": len(build.request.inputs)}


@RULES.add(
    "missing-input",
    "not in {inputs}: {names}: runc and crun will fail",
    proven_by=("test_missing_input",),
)
def _missing_input(build: HostBuild) -> HostFindings:
    """An input is missing in ``--inputs DIR``."""
    if build.inputs is None:
        return
    missing = [name for name in build.request.inputs if not _kind(build.inputs / name)]
    if missing:
        yield {"inputs": build.inputs, "names": listed(missing)}


@RULES.add(
    "input-of-another-kind",
    "not of the kind that the request says, directory or file: {names} (the mount points are as",
    "the request says): runc and crun will fail",
    proven_by=("test_what_the_host_lacks",),
)
def _input_of_another_kind(build: HostBuild) -> HostFindings:
    """An input is a file where the request says directory, or the other way round."""
    if build.inputs is None:
        return
    kinds = build.request.inputs
    other = [n for n in kinds if {kinds[n], _kind(build.inputs / n)} == {"directory", "file"}]
    if other:
        yield {"names": ", ".join(other[:MOST_NAMED])}


def _kind(path: Path) -> str:
    """Return directory or file, links followed; empty for what is not there."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return ""
    return "directory" if stat.S_ISDIR(mode) else "file"


@RULES.add(
    "missing-source",
    "{source}, to be mounted at {place}, {why}: runc and crun will fail (no such file or",
    "directory, or permission denied)",
    proven_by=("test_missing_on_the_host", "test_a_read_only_path_that_this_user_may_not_look_at"),
)
def _missing_source(build: HostBuild) -> HostFindings:
    """A read-only path or the sandbox shell is not there, or this user cannot look at it.

    With network, /etc/resolv.conf, /etc/services and /etc/hosts too.
    """
    for mount in build.binds:
        if why := _missing(mount):
            yield {"source": mount.source, "place": mount.destination, "why": why}


def _missing(mount: oci.Mount) -> str:
    """Return what is wrong with a mount's source; empty if it can be mounted."""
    try:
        os.stat(mount.source)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return "is not there"
    except OSError as error:
        return f"cannot be looked at by this user ({error.strerror})"
    return ""


# A user namespace may not take these away, and a bind mount that does not ask for them
# would. From mount(2) and statvfs(3).
_LOCKED_FLAGS = (
    ("nosuid", os.ST_NOSUID),
    ("nodev", os.ST_NODEV),
    ("noexec", os.ST_NOEXEC),
)


@RULES.add(
    "guarded-source",
    "{source} lies on a file system mounted {flags}: runc 1.1 cannot mount it into a user",
    "namespace (operation not permitted), crun can{but}",
    proven_by=("test_file_system_flags",),
)
def _guarded_source(build: HostBuild) -> HostFindings:
    """The spec is rootless, and a host path lies on a file system mounted with these flags."""
    for mount in build.binds if build.rootless else ():
        if not _missing(mount) and (flags := _flags_to_keep(mount)):
            but = ", but run by a user it lets execute nothing there" * ("noexec" in flags)
            yield {"source": mount.source, "flags": ",".join(flags), "but": but}


def _flags_to_keep(mount: oci.Mount) -> list[str]:
    try:
        flags = os.statvfs(mount.source).f_flag
    except OSError:
        return []
    return [n for n, flag in _LOCKED_FLAGS if flags & flag and n not in mount.options]


@RULES.add(
    "bundle-on-noexec",
    "{bundle} lies on a file system mounted noexec: on {where} a build can execute nothing that it",
    "writes (permission denied). Write the bundle elsewhere",
    proven_by=("test_a_bundle_on_noexec",),
)
def _bundle_on_noexec(build: HostBuild) -> HostFindings:
    """The bundle lies on a file system mounted noexec."""
    if _is_no_exec(build.bundle):
        where = "runc and crun" if build.rootless else "runc"
        yield {"bundle": build.bundle, "where": where}


@RULES.add(
    "inputs-on-noexec",
    "the inputs in {inputs} lie on a file system mounted noexec: runc 1.1 cannot mount them into a",
    "user namespace (operation not permitted), and crun executes none of them (permission denied)",
    proven_by=("test_inputs_on_noexec", "test_copied_inputs_are_where_the_bundle_is"),
)
def _inputs_on_noexec(build: HostBuild) -> HostFindings:
    """The spec is rootless, and the inputs lie on a file system mounted noexec."""
    inputs = build.bundle if build.copied else build.inputs
    if build.rootless and inputs is not None and _is_no_exec(inputs):
        yield {"inputs": inputs}


def _is_no_exec(path: Path) -> bool:
    """Return whether a path, or the first directory above it that is there, is on noexec."""
    for place in (path, *path.parents):
        try:
            return bool(os.statvfs(place).f_flag & os.ST_NOEXEC)
        except FileNotFoundError:
            continue
        except OSError:
            break
    return False


@RULES.add(
    "unreachable-bundle",
    "{closed} is closed to the sandbox's root, uid {uid} of this host: runc will fail (permission",
    "denied), crun not. Write the bundle to a directory that everybody can enter",
    proven_by=("test_a_bundle_that_the_sandboxs_root_cannot_reach",),
)
def _unreachable_bundle(build: HostBuild) -> HostFindings:
    """The sandbox's root cannot enter the bundle's directory, and is not who runs the runtime."""
    if (root := _other_root(build)) and (closed := _closed(str(build.bundle), *root)):
        yield {"closed": closed, "uid": root[0]}


@RULES.add(
    "unreachable-source",
    "{closed} is closed to the sandbox's root, uid {uid} of this host: crun cannot mount what lies",
    "in it (permission denied), runc can. --copy-inputs helps inputs",
    proven_by=("test_inputs_that_the_sandboxs_root_cannot_reach",),
)
def _unreachable_source(build: HostBuild) -> HostFindings:
    """The sandbox's root cannot enter a directory above linked inputs, or above a host path."""
    if not (root := _other_root(build)):
        return
    sources = [mount.source for mount in build.binds]
    if build.inputs is not None and not build.copied:
        sources += (str(build.inputs / name) for name in build.request.inputs)
    unreached = sorted({closed for source in sources if (closed := _closed(source, *root))})
    if unreached:
        yield {"closed": ", ".join(unreached[:MOST_NAMED]), "uid": root[0]}


def _other_root(build: HostBuild) -> tuple[int, int] | None:
    """Return the sandbox's root, where it must reach all by itself: it does not run the runtime."""
    root = on_host(build.spec, 0, 0)
    return root if build.rootless and root and root[0] != os.geteuid() else None


def _closed(path: str, uid: int, gid: int) -> str:
    """Return the directory on the way to a path that a user cannot enter; empty if none."""
    for directory in reversed(Path(os.path.realpath(path)).parents):
        try:
            status = directory.stat()
        except OSError:
            return ""  # said elsewhere
        shift = 6 if status.st_uid == uid else 3 if status.st_gid == gid else 0
        if not status.st_mode >> shift & stat.S_IXOTH:
            return str(directory)
    return ""


_SOURCES_BYTES = 65535 - 5  # a netlink attribute, less its head and a NUL


@RULES.add(
    "long-sources",
    "the paths of all that is mounted take {length} bytes: runc 1.1, run by root for a build in a",
    "user namespace, takes {most} (larger than UINT16_MAX). Write the bundle to a directory with a",
    "shorter path, or run it as another user",
    proven_by=("test_2000_inputs",),
)
def _long_sources(build: HostBuild) -> HostFindings:
    """The spec is rootless, run by root, and the paths of its mounts take more than 64 KiB."""
    # runc 1.1 hands all to its child in one message, if run by root:
    # libcontainer/container_linux.go, bootstrapData, MountSourcesAttr
    mounts = build.spec.mounts if build.rootless and os.geteuid() == 0 else []
    sources = (os.fsencode(build.bundle / m.source) if m.type == "none" else b"" for m in mounts)
    length = len(b"\0".join(sources))
    if length > _SOURCES_BYTES:
        yield {"length": length, "most": _SOURCES_BYTES}
