"""Writing files whole, or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

__all__ = ["write_new", "write_whole"]


def write_whole(name: str, contents: bytes) -> None:
    """Write a file so that nobody ever sees half of it; raises OSError.

    A file that is there is replaced, by one of the same mode.
    """
    path = Path(name)
    if name.endswith(("/", "/.")):  # which a Path forgets
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    there = path.exists()
    if there and not path.is_file():
        path.write_bytes(contents)  # a device or a pipe, such as /dev/stdout, cannot be replaced
        return
    mode = path.stat().st_mode & 0o777 if there else 0o666 & ~_umask()
    fd, new = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:200]}.")
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


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
