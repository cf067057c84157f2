"""What a bundle must hold before the build runs: mount points, files of /etc, the request's own.

The runtime mounts into root/ and scratch/, and makes the mount points that are missing there
only where it may. So the builder lays them beforehand, as this says.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from .layout import Layout
from .paths import lies_in, path_key
from .request import Request
from .spec import BUILD_GID, BUILD_UID

__all__ = ["Claim", "Conflict", "Entry", "EntryKind", "Skeleton"]

EntryKind: TypeAlias = Literal["directory", "file", "as-source"]
"""What an entry is; ``as-source``: the same as the source of the mount, which is of the host."""


class Claim(NamedTuple):
    """Who wants an entry: the field of the request, and what that is, for a sentence."""

    field: str
    what: str


class Entry(msgspec.Struct):
    """A directory or file to lay in the bundle."""

    kind: EntryKind
    claimant: int | Claim
    """Who wants it; of a mount, its number in the layout."""
    mode: int
    contents: bytes = b""
    """Of a file; for ``as-source``, the path of the source, relative ones to the bundle."""


class Conflict(NamedTuple):
    """An entry that must be a directory for one, and a file for another."""

    path: str
    directory_for: Claim
    file_for: Claim


_DIRECTORY_MODE = 0o755
_FILE_MODE = 0o644

_ETC = {
    "passwd": (
        "root:x:0:0:root:/build:/bin/sh\n"
        f"nixbld:x:{BUILD_UID}:{BUILD_GID}:build user:/build:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/:/bin/false\n"
    ),
    "group": f"root:x:0:\nnixbld:x:{BUILD_GID}:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "nsswitch.conf": "hosts: files dns\nservices: files\n",
}


class Skeleton:
    """The entries of root/ and scratch/ by path in the bundle; those above them are directories."""

    def __init__(
        self, request: Request, layout: Layout, numbers: Iterable[int] | None = None
    ) -> None:
        """Lay what these mounts of the layout need; all of them, if none are given."""
        self.entries: dict[str, Entry] = {}
        self.conflicts: list[Conflict] = []
        self.file_paths: list[str] = []
        """Where each of the request's additional files is to be laid; empty for nowhere."""
        self._sorted: list[str] = []  # the entries' paths: those below one stand together
        # those of no directories, but for what lies in such, in the order of path_key
        self._files: list[str] = []
        self._layout = layout
        for number in range(len(layout.mounts)) if numbers is None else numbers:
            self._add_mount(number)
        working_dir = f"/{request.working_dir}"
        self._add(self._place_of(working_dir), Claim("working_dir", "the working directory"))
        for name, contents in _ETC.items():
            path, claim = f"root/etc/{name}", Claim("", f"/etc/{name}")
            if self._conflict(path, claim, "file") is None:  # else the request has other plans
                self._add(path, claim, "file", contents.encode())
        for i, file in enumerate(request.additional_files):
            place = self._place_of(f"/{file.path}")
            claim = Claim(f"additional_files[{i}].path", f"additional_files[{i}]")
            added = self._add(place, claim, "file", file.contents)
            self.file_paths.append(place if place and added else "")

    def _add_mount(self, number: int) -> None:
        mount, kind = self._layout.mounts[number], self._layout.kind(number)
        if kind == "scratch":
            self._add(mount.source, number)
        place = self._place_of(mount.destination, before=number)
        if kind in ("file", "host_file"):
            self._add(place, number, "file")
        elif kind in ("symlink", "ro_path"):
            self._add(place, number, "as-source", mount.source.encode())
        else:
            self._add(place, number, mode=_mode(mount.options) if mount.type == "tmpfs" else None)

    def _place_of(self, path: str, *, before: int | None = None) -> str | None:
        """Return where in the bundle a path of the sandbox lies; None if in another mount."""
        number = self._layout.seen_at(path, before=before)
        if number is None:
            return f"root{path}".rstrip("/")
        if number in self._layout.scratch:
            mount = self._layout.mounts[number]
            return mount.source + path[len(mount.destination) :]
        return None  # what is in there is no part of the bundle

    def _add(
        self,
        path: str | None,
        claimant: int | Claim,
        kind: EntryKind = "directory",
        contents: bytes = b"",
        mode: int | None = None,
    ) -> bool:
        """Add an entry; return whether it is now as claimed."""
        if path is None:
            return True
        conflict = self._conflict(path, claimant, kind)
        if conflict is not None:
            self.conflicts.append(conflict)
            return False
        known = self.entries.get(path)
        if known is None:
            insort(self._sorted, path)
            if kind != "directory":
                self._add_file(path)
        if known is None or (kind == "file" and known.kind != "directory"):
            default = _FILE_MODE if kind == "file" else _DIRECTORY_MODE
            known = self.entries[path] = Entry(kind, claimant, default, contents)
        if mode is not None:
            known.mode = mode
        return True

    def _conflict(self, path: str, claimant: int | Claim, kind: EntryKind) -> Conflict | None:
        above = self._file_above(path)
        if above is not None:
            claim = self._claim(self.entries[above].claimant)
            return Conflict(above, self._claim(claimant), claim)
        there = self.entries.get(path)
        below = self._first_below(path) if there is None and kind == "file" else None
        if below is not None:
            return Conflict(path, self._claim(below.claimant), self._claim(claimant))
        if there is None or there.kind == kind or "as-source" in (there.kind, kind):
            return None
        if kind == "file":
            return Conflict(path, self._claim(there.claimant), self._claim(claimant))
        return Conflict(path, self._claim(claimant), self._claim(there.claimant))

    def _add_file(self, path: str) -> None:
        i = j = bisect_left(self._files, path_key(path), key=path_key)
        while j < len(self._files) and lies_in(self._files[j], path):
            j += 1
        self._files[i:j] = [path]

    def _file_above(self, path: str) -> str | None:
        """Return the first part of a path that is no directory; it may have thousands of parts."""
        i = bisect_left(self._files, path_key(path), key=path_key)
        above = self._files[i - 1] if i else ""
        return above if above and lies_in(path, above) else None

    def _first_below(self, path: str) -> Entry | None:
        i = bisect_left(self._sorted, f"{path}/")
        if i < len(self._sorted) and self._sorted[i].startswith(f"{path}/"):
            return self.entries[self._sorted[i]]
        return None

    def _claim(self, claimant: int | Claim) -> Claim:
        if isinstance(claimant, Claim):
            return claimant
        return Claim(self._layout.field(claimant), self._layout.what(claimant))


def _mode(options: Iterable[str]) -> int | None:
    """Return a tmpfs' mode: runc gives it the one that its mount point has, whatever the spec."""
    given = [option for option in options if option.startswith("mode=")]
    return int(given[-1].removeprefix("mode="), 8) if given else None
