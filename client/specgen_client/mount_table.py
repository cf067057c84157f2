"""What is mounted where, as this process sees it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MountPoint", "mount_points"]

_TABLE = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class MountPoint:
    """A line of /proc/pid/mountinfo, see proc(5)."""

    path: Path
    read_only: bool
    """Of the mount itself, or of the file system."""


def mount_points() -> Iterator[MountPoint]:
    """Yield all of this process."""
    for line in _TABLE.read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        path = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4])
        options = {*fields[5].split(","), *fields[-1].split(",")}
        yield MountPoint(Path(path), "ro" in options)
