"""Directories by descriptor: what has been opened once cannot be exchanged for something else."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from .bundle_error import BundleError

__all__ = ["exists", "make_directory", "open_below", "open_directory"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_LINKS = 40  # as the kernel's own, see path_resolution(7)


def open_directory(path: Path) -> int:
    """Open a directory, component by component, and return its descriptor.

    For root a symbolic link on the way must be root's own: whoever it belongs to could lead
    root anywhere with it. That is what fs.protected_symlinks is for, see proc(5).

    Raises:
        BundleError: a link on the way belongs to somebody else.
        OSError: it cannot be opened.
    """
    todo = list(reversed(path.absolute().parts[1:]))
    links = 0
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while todo:
            found = os.open(todo.pop(), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            status = os.fstat(found)
            if not stat.S_ISLNK(status.st_mode):
                os.close(fd)
                fd = found
                continue
            target = Path(os.readlink("", dir_fd=found))
            os.close(found)
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if os.geteuid() == 0 and status.st_uid != 0:
                raise BundleError(
                    f"a symbolic link on the way to {path}, to {target}, belongs to uid"
                    f" {status.st_uid}, who could lead root anywhere: name the directory itself"
                )
            if target.is_absolute():
                os.close(fd)
                fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            todo += reversed(target.parts[1:] if target.is_absolute() else target.parts)
        return open_below(fd, ".")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(fd)


def open_below(fd: int, name: str) -> int:
    """Open a directory in a directory; no link is followed. Raises OSError."""
    return os.open(name, _DIRECTORY, dir_fd=fd)


def make_directory(fd: int, name: str, mode: int) -> int:
    """Make a directory in a directory, of this mode whatever the umask, and open it.

    Raises:
        BundleError: somebody else has put a directory of theirs in its place.
        OSError: it cannot be made.
    """
    os.mkdir(name, 0o700, dir_fd=fd)
    made = open_below(fd, name)
    if os.fstat(made).st_uid != os.geteuid():
        os.close(made)
        raise BundleError(f"{name} was exchanged by somebody else while it was made")
    os.fchmod(made, mode)
    return made


def exists(fd: int, name: str) -> bool:
    """Return whether a directory has an entry of this name, be it a dangling link."""
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
