"""What a path of the sandbox leads to on this host, before the build starts.

Links are followed as the build will follow them: an absolute one from the sandbox's root, and
never out of what is mounted. Everything is opened once, as what it then is, and waited for
nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from specgen_core import BUILD_GID, BUILD_UID, Request, oci
from specgen_core.paths import PathTree, lies_in

from .owners import has_user_namespace, on_host
from .program import Program, program_of

__all__ = ["CannotKnow", "File", "Sandbox", "may"]

_MAX_LINKS = 40  # as the kernel's own, see path_resolution(7)
_MAX_STEPS = 400
_RUNTIMES = ("/proc", "/sys", "/dev")


class CannotKnow(Exception):
    """What lies at a path is made later, or by the runtime, or may not be looked at."""


@dataclass(frozen=True)
class File:
    """What a path leads to."""

    path: str
    """In the sandbox, without links."""
    status: os.stat_result
    of_host: bool
    """Whether it is the host's, and not an input."""
    executable: bool
    """Whether its mode lets the build execute it."""
    program: Program | None
    """What it is to execve(2); None for what is no file, or cannot be read."""


def may(spec: oci.Spec, status: os.stat_result, bits: int) -> bool:
    """Return whether a build has these bits, of 7, of what is mounted.

    CAP_DAC_OVERRIDE is good for what belongs to ids that are mapped, and executes what has any
    such bit: capabilities(7); user_namespaces(7), "Interaction of user namespaces and other
    types of namespaces".
    """
    build = on_host(spec, BUILD_UID, BUILD_GID)
    uid, gid = build or (-1, -1)
    shift = 6 if status.st_uid == uid else 3 if status.st_gid == gid else 0
    if status.st_mode >> shift & bits == bits:
        return True
    if (
        not has_user_namespace(spec)
        or "CAP_DAC_OVERRIDE" not in spec.process.capabilities.effective
    ):
        return False
    owned = _is_mapped(spec.linux.uid_mappings, status.st_uid)
    owned = owned and _is_mapped(spec.linux.gid_mappings, status.st_gid)
    is_file = not stat.S_ISDIR(status.st_mode)
    return owned and not (bits & 1 and is_file and not status.st_mode & 0o111)


def _is_mapped(mappings: tuple[oci.IdMap, ...], host_id: int) -> bool:
    return any(m.host_id <= host_id < m.host_id + m.size for m in mappings)


class Sandbox:
    """The mounts of a spec, and what they show of this host."""

    def __init__(
        self, request: Request, spec: oci.Spec, inputs: Path | None, *, copied: bool
    ) -> None:
        """Take what the spec is of; without inputs, theirs cannot be known."""
        self._spec, self._inputs, self._copied = spec, inputs, copied
        # not a Layout: who made the spec may have mounted more, or in another order
        self._last_at = {mount.destination: n for n, mount in enumerate(spec.mounts)}
        self._tree = PathTree(self._last_at)
        files = {"/etc/passwd", "/etc/group"}
        files |= {f"/{file.path}" for file in request.additional_files}
        self._laid = files
        self._made = {"", spec.process.cwd}
        for path in (spec.process.cwd, *files, *(mount.destination for mount in spec.mounts)):
            while (path := path.rpartition("/")[0]) and path not in self._made:
                self._made.add(path)

    def find(self, path: str) -> File:
        """Return what a path leads to; a relative one starts where the command does.

        Raises:
            CannotKnow: it leads to where only the build or the runtime knows.
            OSError: execve(2) of it fails, in the same way.
        """
        if not path.startswith("/"):
            path = f"{self._spec.process.cwd}/{path}"
        todo, here, links = path.split("/")[::-1], "", 0
        for _ in range(_MAX_STEPS):
            if not todo:
                break
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                here = here.rpartition("/")[0]
                continue
            place = f"{here}/{name}"
            fd = self._open(place)
            if fd is None:
                here = place
                continue
            try:
                status = os.fstat(fd)
                if stat.S_ISLNK(status.st_mode):
                    links += 1
                    if links > _MAX_LINKS:
                        raise _error(errno.ELOOP, place)
                    target = os.readlink("", dir_fd=fd)
                    here = "" if target.startswith("/") else here
                    todo += target.split("/")[::-1]
                    continue
                here = place
                if stat.S_ISDIR(status.st_mode):
                    if not self._copied and not may(self._spec, status, 1):
                        raise _error(errno.EACCES, place)
                elif todo:
                    raise _error(errno.ENOTDIR, place)
                if not todo:
                    return self._file(place, fd, status)
            finally:
                os.close(fd)
        raise CannotKnow(path)

    def _mount_at(self, place: str) -> oci.Mount | None:
        """Return the mount that a path leads into: the last of those at or above it."""
        found = [self._last_at[at] for at in self._tree.at_or_above(place)]
        return self._spec.mounts[max(found)] if found else None

    def _open(self, place: str) -> int | None:
        """Open what lies at a path without links in it; None is a directory made for the build."""
        mount = self._mount_at(place)
        if mount is None or mount.source.startswith("scratch/") or mount.destination == "/tmp":
            if place in self._laid:
                raise CannotKnow(place)
            if place in self._made or (mount is not None and place == mount.destination):
                return None
            raise _error(errno.ENOENT, place)
        if mount.type != "none" or any(lies_in(mount.destination, d) for d in _RUNTIMES):
            raise CannotKnow(place)
        names = place[len(mount.destination.rstrip("/")) :].split("/")
        try:
            fd = os.open(self._source(mount), os.O_PATH | os.O_CLOEXEC)
        except (OSError, ValueError):  # is for another check to say
            raise CannotKnow(place) from None
        for name in filter(None, names):
            try:
                below = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            except PermissionError:
                raise CannotKnow(place) from None
            except OSError as error:
                raise _error(error.errno or errno.ENOENT, place) from None
            finally:
                os.close(fd)
            fd = below
        return fd

    def _source(self, mount: oci.Mount) -> str:
        """Return where on this host a mount's source lies."""
        if mount.source.startswith("/"):
            return mount.source
        if self._inputs is None or not mount.source.startswith("inputs/"):
            raise CannotKnow(mount.destination)
        source = self._inputs / mount.source.removeprefix("inputs/")
        if self._copied and source.is_symlink():  # the copy leads somewhere else
            raise CannotKnow(mount.destination)
        return str(source)

    def _file(self, place: str, fd: int, status: os.stat_result) -> File:
        mount = self._mount_at(place)
        of_host = mount is not None and mount.source.startswith("/")
        copied = self._copied and not of_host
        is_file = stat.S_ISREG(status.st_mode)
        return File(
            path=place,
            status=status,
            of_host=of_host,
            executable=bool(status.st_mode & stat.S_IXUSR)
            if copied
            else may(self._spec, status, 1),
            program=program_of(fd) if is_file else None,
        )


def _error(number: int, place: str) -> OSError:
    return OSError(number, os.strerror(number), place)
