"""Laying what a bundle's root/ and scratch/ hold, as specgen_core.skeleton says."""

from __future__ import annotations

import os
import re
from pathlib import Path

from specgen_core import Layout, Request, Skeleton, oci
from specgen_core.paths import path_problems
from specgen_core.skeleton import Entry
from specgen_core.text import quoted

from .bundle_error import BundleError
from .files import write_new

__all__ = ["Tree", "tree_of"]

_PATH_CHARS = 4095  # PATH_MAX, less the NUL byte at the end


def tree_of(request: Request, spec: oci.Spec, inputs: Path | None) -> Tree:
    """Return all that is in root/ and scratch/.

    Raises:
        BundleError: a file must be where a directory must, or where the build would not see
            it; or the spec is not one of this request.
    """
    layout = Layout(request, spec.mounts)
    _check_spec(spec, layout)
    skeleton = Skeleton(request, layout)
    for path, directory_for, file_for in skeleton.conflicts:
        raise BundleError(
            f"{path} must be a directory for {directory_for.what}, and a file for {file_for.what}"
        )
    for i, (file, place) in enumerate(zip(request.additional_files, skeleton.file_paths)):
        if not place:
            seen = layout.seen_at(f"/{file.path}")
            over = layout.what(seen) if seen is not None else "another"
            raise BundleError(
                f"additional_files[{i}].path: {file.path} lies at or in {over}, so the build "
                "would not see it"
            )
    return Tree({"root": None, "scratch": None, **skeleton.entries}, inputs)


def _check_spec(spec: oci.Spec, layout: Layout) -> None:
    """Raise BundleError for paths that are none; the spec may be anybody's who has a server."""
    if len(spec.mounts) < layout.host_files.start:
        raise BundleError("the spec has fewer mounts than the request asks for")
    for number, mount in enumerate(spec.mounts):
        path = mount.destination
        if len(path) > _PATH_CHARS:
            raise BundleError(f"{quoted(path)} is longer than a path can be")
        if path_problems(path, absolute=True):
            raise BundleError(f"the spec names {quoted(path)}, which is no path in a bundle")
        if number in layout.scratch and not re.fullmatch("scratch/[A-Z2-7=]+", mount.source):
            raise BundleError(f"the spec names {quoted(mount.source)}, which is no scratch path")


class Tree:
    """Directories and files to make in a bundle, parents first; none of them is a link."""

    def __init__(self, entries: dict[str, Entry | None], inputs: Path | None) -> None:
        """Take the entries by path, None for a plain directory, and where the inputs are."""
        self._entries = entries
        self._inputs = inputs

    def scratch_directories(self) -> list[str]:
        """Return the directories of scratch/, by path in the bundle."""
        return [path for path in self._entries if re.fullmatch("scratch/[^/]+", path)]

    def write(self, fd: int, owner: tuple[int, int] | None) -> None:
        """Make it all below a directory; what is in a scratch directory gets the owner."""
        for path, entry in self._entries.items():
            if entry is None or self._is_directory(entry):
                os.mkdir(path, dir_fd=fd)
                mode = entry.mode if entry and entry.kind == "directory" else 0o755
                os.chmod(path, mode, dir_fd=fd)  # whatever the umask
            else:
                write_new(fd, path, entry.contents if entry.kind == "file" else b"")
            if owner is not None and path.startswith("scratch/"):
                os.chown(path, *owner, dir_fd=fd, follow_symlinks=False)

    def _is_directory(self, entry: Entry) -> bool:
        if entry.kind != "as-source":
            return entry.kind == "directory"
        source = Path(os.fsdecode(entry.contents))
        if not source.is_absolute():  # an input
            if self._inputs is None:
                return False
            source = self._inputs / source.name
        return source.is_dir() or not source.exists()
