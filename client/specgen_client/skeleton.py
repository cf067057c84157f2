"""Laying what a bundle's root/ and scratch/ hold, as the answer to a request says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from specgen.v1.specgen_pb2 import RootEntry, SpecJSON
from specgen_core import Request
from specgen_core.paths import path_problems
from specgen_core.text import quoted

from .bundle_error import BundleError
from .files import write_new

__all__ = ["Tree", "tree_of"]

_PATH_BYTES = 4095  # PATH_MAX, less the NUL byte at the end
_MOST_MODE = 0o1777


class _Entry(msgspec.Struct, frozen=True):
    """A directory, or a file with these contents."""

    path: str
    is_directory: bool
    mode: int
    contents: bytes = b""


def tree_of(request: Request, answer: SpecJSON, inputs: Path | None) -> Tree:
    """Return all that is in root/ and scratch/.

    Args:
        request: the request that the answer is to.
        answer: with its root_entries, as options.skeleton asks for.
        inputs: where the inputs are, to see of which kind those are that are links.

    Raises:
        BundleError: the answer does not say where all of it belongs, or says it of places
            that are in no bundle.
    """
    if not answer.root_entries:
        raise BundleError("the answer has no root_entries: ask for it with options.skeleton")
    entries = [_Entry("scratch", True, _DIRECTORY_MODE)]
    for found in answer.scratch_dirs:
        if not re.fullmatch("scratch/[A-Z2-7=]+", found.bundle_path):
            raise BundleError(
                f"the answer names {quoted(found.bundle_path)}, which is no scratch path"
            )
        entries.append(_Entry(found.bundle_path, True, _DIRECTORY_MODE))
    entries += (_entry_of(entry, inputs) for entry in answer.root_entries)
    entries += _additional_files(request, answer)
    return Tree({entry.path: entry for entry in entries})


def _entry_of(entry: RootEntry, inputs: Path | None) -> _Entry:
    _check_path(entry.bundle_path)
    if entry.mode > _MOST_MODE:
        raise BundleError(f"the answer gives {quoted(entry.bundle_path)} the mode {entry.mode:o}")
    if entry.kind == "directory":
        return _Entry(entry.bundle_path, True, entry.mode)
    if entry.kind == "file":
        return _Entry(entry.bundle_path, False, entry.mode, entry.contents)
    if entry.kind == "as-source":
        return _Entry(entry.bundle_path, _is_directory(entry.contents, inputs), entry.mode)
    raise BundleError(f"the answer has an entry of the kind {quoted(entry.kind)}")


def _is_directory(source: bytes, inputs: Path | None) -> bool:
    path = Path(os.fsdecode(source.replace(b"\0", b"")))
    if not path.is_absolute():  # an input
        if inputs is None:
            return False
        path = inputs / path.name
    return path.is_dir() or not path.exists()


def _additional_files(request: Request, answer: SpecJSON) -> Iterator[_Entry]:
    if len(answer.additional_files) != len(request.additional_files):
        raise BundleError("the answer is not to this request: it has other additional files")
    for i, (file, found) in enumerate(zip(request.additional_files, answer.additional_files)):
        if not found.bundle_path:
            why = [
                one.message
                for one in answer.diagnostics
                if one.field.startswith(f"additional_files[{i}].")
            ]
            raise BundleError(
                f"additional_files[{i}].path: {why[0] if why else 'it has no place in a bundle'}"
            )
        _check_path(found.bundle_path)
        yield _Entry(found.bundle_path, False, 0o644, file.contents)


def _check_path(path: str) -> None:
    """Raise BundleError for a path that leads elsewhere; the answer may be of any server."""
    if len(path.encode(errors="replace")) > _PATH_BYTES:
        raise BundleError(f"{quoted(path)} is longer than a path can be")
    if path != "root" and (path_problems(path) or not path.startswith(("root/", "scratch/"))):
        raise BundleError(f"the answer names {quoted(path)}, which is no path in a bundle")


class Tree:
    """Directories and files to make in a bundle, with those above them; none of them is a link."""

    def __init__(self, entries: dict[str, _Entry]) -> None:
        """Take them by path."""
        self._entries = entries

    def write(self, fd: int, owner: tuple[int, int] | None) -> None:
        """Make it all below a directory; what is in a scratch directory gets the owner."""
        made: set[str] = set()
        for path, entry in self._entries.items():
            missing = [above for above in _directories_above(path) if above not in made]
            if entry.is_directory:
                missing.append(path)
            for directory in missing:
                if directory not in made:
                    os.mkdir(directory, dir_fd=fd)
                    os.chmod(directory, _DIRECTORY_MODE, dir_fd=fd)  # whatever the umask
                    made.add(directory)
                    _give(directory, fd, owner)
            if entry.is_directory:
                os.chmod(path, entry.mode, dir_fd=fd)
            elif path not in made:  # else something lies below, so its source is a directory
                write_new(fd, path, entry.contents)
                _give(path, fd, owner)


_DIRECTORY_MODE = 0o755


def _directories_above(path: str) -> Iterator[str]:
    """Yield the directories above a path, the topmost first."""
    end = path.find("/")
    while end >= 0:
        yield path[:end]
        end = path.find("/", end + 1)


def _give(path: str, fd: int, owner: tuple[int, int] | None) -> None:
    if owner is not None and path.startswith("scratch/"):
        os.chown(path, *owner, dir_fd=fd, follow_symlinks=False)
