"""Writing files whole, or not at all."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path

__all__ = ["hidden_prefix", "write_new", "write_whole"]


def hidden_prefix(name: str) -> str:
    """Return how the name of what will be called ``name`` starts while it is being made."""
    return f".{os.fsdecode(os.fsencode(name)[:200])}."  # names have at most 255 bytes


def write_whole(name: str, contents: bytes) -> None:
    """Write a file so that nobody ever sees half of it; raises OSError.

    A file that is there is replaced, by one of the same mode. A symbolic link stays, and what
    it leads to is written.
    """
    path = Path(name)
    if name.endswith(("/", "/.")):  # which a Path forgets
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    there = path.exists()
    if there and not path.is_file():
        path.write_bytes(contents)  # a device or a pipe, such as /dev/stdout, cannot be replaced
        return
    if path.is_symlink():
        _check_link(path)
        path = Path(os.path.realpath(path))
        if path.is_symlink():  # which leads to itself
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
    mode = path.stat().st_mode & 0o777 if there else 0o666 & ~_umask()
    fd, new = tempfile.mkstemp(dir=path.parent, prefix=hidden_prefix(path.name))
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(contents)
            os.fchmod(file.fileno(), mode)
        Path(new).replace(path)
    except BaseException:
        Path(new).unlink(missing_ok=True)  # Ctrl-C may come once it is in place
        raise


def write_new(fd: int, path: str, contents: bytes) -> None:
    """Write a file that is not there yet, below a directory that only we can write to."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600, dir_fd=fd), "wb") as file:
        file.write(contents)
        os.fchmod(file.fileno(), 0o644)


def _check_link(path: Path) -> None:
    """Raise PermissionError as the kernel does with fs.protected_symlinks, see proc(5)."""
    link, directory = path.lstat(), path.parent.stat()
    anybodys = directory.st_mode & stat.S_ISVTX and directory.st_mode & stat.S_IWOTH
    if anybodys and link.st_uid not in (os.geteuid(), directory.st_uid):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
