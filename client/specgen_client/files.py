"""Writing files whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, contents: bytes) -> None:
    """Write a file so that nobody ever sees half of it; raises OSError."""
    if path.exists() and not path.is_file():
        path.write_bytes(contents)  # a device or a pipe, such as /dev/stdout, cannot be replaced
        return
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:200]}.")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(contents)
            os.fchmod(file.fileno(), 0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
