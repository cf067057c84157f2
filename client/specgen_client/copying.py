"""What lies in a bundle's inputs/."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from specgen_core import Request

from .bundle_error import BundleError

__all__ = ["write_inputs"]


def write_inputs(request: Request, bundle: Path, inputs: Path | None, *, copy: bool) -> None:
    """Make a bundle's inputs/: empty, a copy of the inputs, or a link to their directory."""
    place = bundle / "inputs"
    if inputs is not None and not copy:
        place.symlink_to(inputs.resolve())
        return
    place.mkdir()
    place.chmod(0o755)
    if inputs is not None:
        for name in request.inputs:
            _copy_node(inputs / name, place / name)


def _copy_node(source: Path, target: Path) -> None:
    """Copy what the store knows of a node: names, contents, executable bits and links."""
    todo = [(source, target)]
    while todo:
        source, target = todo.pop()
        mode = source.lstat().st_mode
        if stat.S_ISDIR(mode):
            target.mkdir()
            target.chmod(0o755)
            todo += ((Path(entry.path), target / entry.name) for entry in os.scandir(source))
        elif stat.S_ISREG(mode):
            shutil.copyfile(source, target, follow_symlinks=False)
            target.chmod(0o755 if mode & stat.S_IXUSR else 0o644)
        elif stat.S_ISLNK(mode):
            target.symlink_to(source.readlink())
        else:
            raise BundleError(f"cannot copy {source}: no file, directory or symlink")
