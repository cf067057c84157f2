"""What this host lacks for a spec to run on it: what only its builder can know.

What can be known from the request alone is a diagnostic of the spec instead.
"""

from __future__ import annotations

import os
import pwd
import resource
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from specgen_core import BUILD_GID, BUILD_UID, Request, oci

from .command_checks import command_problems
from .owners import has_user_namespace, on_host
from .read_only_paths import read_only_path_problems

__all__ = ["host_problems"]

_NAMED = 5


def host_problems(
    request: Request,
    spec: oci.Spec,
    bundle: Path,
    inputs: Path | None,
    *,
    copied: bool,
    said: Collection[str] = (),
    min_memory: int = 0,
) -> Iterator[str]:
    """Yield sentences about what will keep a spec from running on this host.

    Args:
        request: the request that the spec is of.
        spec: its config.json.
        bundle: where the bundle will lie.
        inputs: the directory that becomes the bundle's inputs/; None if that stays empty.
        copied: by being copied, and not by a link.
        said: codes of the diagnostics that the spec came with.
        min_memory: bytes that the request wants the host to have.
    """
    yield from _inputs(request, inputs)
    in_user_namespace = has_user_namespace(spec)
    binds = [m for m in spec.mounts if m.type == "none" and Path(m.source).is_absolute()]
    for mount in binds:
        if problem := _missing(mount):
            yield problem
        elif in_user_namespace and (flags := _flags_to_keep(mount)):
            yield (
                f"{mount.source} lies on a file system mounted {','.join(flags)}: runc 1.1 cannot "
                "mount it into a user namespace (operation not permitted), crun can"
                + (", but run by a user it lets execute nothing there" * ("noexec" in flags))
            )
    ro_paths = request.constraints.available_ro_paths
    yield from (f"{path} {why}" for path in ro_paths if (why := _closed_to_build(path, spec)))
    yield from read_only_path_problems(ro_paths)
    yield from _denied_devices(ro_paths, spec)
    yield from _borrowed_ids(spec)
    yield from _not_roots(bundle)
    sources = [mount.source for mount in binds]
    if inputs is not None and not copied:
        sources += (str(inputs / name) for name in request.inputs)
    yield from _out_of_reach(spec, bundle, sources)
    if in_user_namespace and os.geteuid() == 0:
        yield from _length_of_sources(spec, bundle)
    yield from command_problems(
        request, spec, inputs, copied=copied, look_at_command="unusable-command" not in said
    )
    yield from _no_exec(spec, bundle, bundle if copied else inputs)
    yield from _open_files(spec)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if min_memory > memory:
        yield (
            f"the build wants a host with {min_memory} bytes of memory (constraints.min_memory),"
            f" and this one has {memory}: runc and crun start it all the same. Send it elsewhere"
        )


def _no_exec(spec: oci.Spec, bundle: Path, inputs: Path | None) -> Iterator[str]:
    """Yield what noexec keeps a build from: rootful, a read-only mount of inputs is without."""
    rootless = has_user_namespace(spec)
    if _is_no_exec(bundle):
        where = "runc and crun" if rootless else "runc"
        yield (
            f"{bundle} lies on a file system mounted noexec: on {where} a build can execute nothing"
            " that it writes (permission denied). Write the bundle elsewhere"
        )
    if rootless and inputs is not None and _is_no_exec(inputs):
        yield (
            f"the inputs in {inputs} lie on a file system mounted noexec: runc 1.1 cannot mount"
            " them into a user namespace (operation not permitted), and crun executes none of them"
            " (permission denied)"
        )


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


def _open_files(spec: oci.Spec) -> Iterator[str]:
    """Only root may raise a hard limit: setrlimit(2)."""
    _, own = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max((limit.hard for limit in spec.process.rlimits), default=0)
    if os.geteuid() != 0 and wanted > own != resource.RLIM_INFINITY:
        yield (
            f"a build may have {wanted} files open by its spec, and this user {own}: runc and crun"
            " fail (operation not permitted). Raise the user's limit, or lower --nofile"
        )


def _missing(mount: oci.Mount) -> str:
    """Return what is wrong with a mount's source; empty if it can be mounted."""
    try:
        os.stat(mount.source)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        why = "is not there"
    except OSError as error:
        why = f"cannot be looked at by this user ({error.strerror})"
    else:
        return ""
    return f"{mount.source}, to be mounted at {mount.destination}, {why}: runc and crun will fail"


def _closed_to_build(path: str, spec: oci.Spec) -> str:
    """Return why a build cannot look at what is mounted; empty if it can.

    In a user namespace it has CAP_DAC_OVERRIDE, which is good for what its ids own:
    user_namespaces(7), "Interaction of user namespaces and other types of namespaces".
    """
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return ""  # said already
    mode = status.st_mode
    needed = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
    if has_user_namespace(spec):
        own = {ids for _, *both in _MEANT if (ids := on_host(spec, *both))}
        uids, gids = {uid for uid, _ in own}, {gid for _, gid in own}
        can = mode & needed == needed or (status.st_uid in uids and status.st_gid in gids)
    else:
        shift = 6 if status.st_uid == BUILD_UID else 3 if status.st_gid == BUILD_GID else 0
        can = (mode >> shift) & needed == needed
    if can:
        return ""
    return (
        f"is closed to the build (mode {stat.S_IMODE(mode):o}, uid {status.st_uid}, gid"
        f" {status.st_gid}): it will be mounted, and the build cannot look at it"
    )


# runc, libcontainer/specconv, AllowedDevices: null, zero, full, random, urandom, tty, console, ptmx
_OF_EVERY_CONTAINER = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)}


def _denied_devices(ro_paths: Iterable[str], spec: oci.Spec) -> Iterator[str]:
    """Rules are by number, wherever the node lies; of those in /dev a diagnostic speaks already."""
    rules = spec.linux.resources.devices
    allowed = {(rule.type, rule.major, rule.minor) for rule in rules if rule.allow}
    if os.geteuid() != 0 or not rules:  # a user's builds have no device rules
        return
    for path in ro_paths:
        try:
            status = os.stat(path)  # noqa: PTH116
        except OSError:
            continue  # said already
        type_ = "c" if stat.S_ISCHR(status.st_mode) else "b" if stat.S_ISBLK(status.st_mode) else ""
        number = os.major(status.st_rdev), os.minor(status.st_rdev)
        is_every = type_ == "c" and number in _OF_EVERY_CONTAINER
        if type_ and not is_every and (type_, *number) not in allowed and path[:5] != "/dev/":
            yield (
                f"{path} is a device that the spec's rules deny: a build gets \"Operation not"
                f' permitted" on runc, and on crun where that makes a cgroup. Add --device'
                f" {path}:{type_}:{number[0]}:{number[1]}:rw"
            )


_NOBODY = 65534
_BUILD = "the build"
_MEANT = (
    ("root of the sandbox", 0, 0),
    (_BUILD, BUILD_UID, BUILD_GID),
    ("nobody of the sandbox", _NOBODY, _NOBODY),
)


def _borrowed_ids(spec: oci.Spec) -> Iterator[str]:
    """A user of the sandbox who is also one of this host can do there what that one can."""
    for who, uid, gid in _MEANT:
        owner = on_host(spec, uid, gid)
        if owner is None or (who != _BUILD and not has_user_namespace(spec)):
            continue
        try:
            name = pwd.getpwuid(owner[0]).pw_name
        except KeyError:
            continue
        if owner[0] == 0 or owner[0] != os.geteuid():
            yield (
                f"{who} is uid {owner[0]} of this host, {name}, and can do here what {name} can:"
                " with --rootless --id-mappings auto it is nobody"
            )


def _not_roots(bundle: Path) -> Iterator[str]:
    """Whoever may rename what lies on the way to a bundle decides what root will run."""
    if os.geteuid() != 0:
        return
    parent = Path(os.path.realpath(bundle.parent))
    for directory in (parent, *parent.parents):
        try:
            status = directory.stat()
        except OSError:
            return  # said when the bundle is written
        by_group = status.st_mode & stat.S_IWGRP and status.st_gid != 0
        by_others = (
            by_group or status.st_mode & stat.S_IWOTH
        ) and not status.st_mode & stat.S_ISVTX
        if status.st_uid != 0 or by_others:
            whose = f"uid {status.st_uid}'s" if status.st_uid else "for others to write to"
            yield (
                f"{directory} is {whose}, who may put another bundle in the place of this one"
                " before root runs it. Write it to a directory of root's, such as below /var/lib"
            )
            return


def _out_of_reach(spec: oci.Spec, bundle: Path, sources: list[str]) -> Iterator[str]:
    """Where root of the sandbox is not who runs the runtime, it must reach all by itself."""
    root = on_host(spec, 0, 0)
    if root is None or root[0] == os.geteuid() or not has_user_namespace(spec):
        return
    if closed := _closed(str(bundle), *root):
        yield (
            f"{closed} is closed to the sandbox's root, uid {root[0]} of this host: runc"
            " will fail (permission denied), crun not. Write the bundle to a directory that"
            " everybody can enter"
        )
    unreached = sorted({closed for source in sources if (closed := _closed(source, *root))})
    if unreached:
        yield (
            f"{', '.join(unreached[:_NAMED])} is closed to the sandbox's root, uid {root[0]} of"
            " this host: crun cannot mount what lies in it, runc can. --copy-inputs helps inputs"
        )


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


def _inputs(request: Request, inputs: Path | None) -> Iterator[str]:
    if not request.inputs:
        return
    if inputs is None:
        yield (
            f"inputs/ is empty: lay the {len(request.inputs)} inputs there, each under its "
            "name, before the build runs"
        )
        return
    kinds = {name: _kind(inputs / name) for name in request.inputs}
    missing = [name for name, kind in kinds.items() if not kind]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        yield f"not in {inputs}: {', '.join(missing[:_NAMED])}{more}: runc and crun will fail"
    other = [
        name
        for name, kind in request.inputs.items()
        if {kind, kinds[name]} == {"directory", "file"}
    ]
    if other:
        yield (
            f"not of the kind that the request says, directory or file: {', '.join(other[:_NAMED])}"
            " (the mount points are as the request says): runc and crun will fail"
        )


def _kind(path: Path) -> str:
    """Return directory or file, links followed; empty for what is not there."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return ""
    return "directory" if stat.S_ISDIR(mode) else "file"


# A user namespace may not take these away, and a bind mount that does not ask for them
# would. From mount(2) and statvfs(3).
_LOCKED_FLAGS = (
    ("nosuid", os.ST_NOSUID),
    ("nodev", os.ST_NODEV),
    ("noexec", os.ST_NOEXEC),
)


def _flags_to_keep(mount: oci.Mount) -> list[str]:
    try:
        flags = os.statvfs(mount.source).f_flag
    except OSError:
        return []
    return [n for n, flag in _LOCKED_FLAGS if flags & flag and n not in mount.options]


_SOURCES_BYTES = 65535 - 5  # a netlink attribute, less its head and a NUL


def _length_of_sources(spec: oci.Spec, bundle: Path) -> Iterator[str]:
    """Runc 1.1 hands all sources of bind mounts to its child in one message, if run by root.

    Source: runc 1.1, libcontainer/container_linux.go, bootstrapData, MountSourcesAttr.
    """
    sources = (os.fsencode(bundle / m.source) if m.type == "none" else b"" for m in spec.mounts)
    length = len(b"\0".join(sources))
    if length > _SOURCES_BYTES:
        yield (
            f"the paths of all that is mounted take {length} bytes: runc 1.1, run by root for a "
            f"build in a user namespace, takes {_SOURCES_BYTES} (larger than UINT16_MAX). Write "
            "the bundle to a directory with a shorter path, or run it as another user"
        )
