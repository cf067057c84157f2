"""Putting a bundle in its place: whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .bundle_error import BundleError
from .user_namespace import CannotMap, remove_as_subordinate

__all__ = ["new_contents"]

_BUNDLE = ("config.json", "inputs", "root", "scratch")


@contextlib.contextmanager
def new_contents(directory: Path, *, force: bool) -> Iterator[tuple[Path, int]]:
    """Yield a new directory, by path and descriptor, whose entries end up in ``directory``.

    They do when the block ends well. Otherwise nothing stays, and an old bundle is back.
    """
    directory = directory.parent.resolve(strict=True) / directory.name
    if directory.name in ("", ".."):
        directory = directory.resolve()
    there = os.path.lexists(directory)
    if there:
        _check_replaceable(directory, force=force)
    # Within a directory that is there: its parent may not be ours to write to, it may be a
    # mount point, or somebody's working directory.
    parent = directory if there else directory.parent
    prefix = f".{directory.name[:200]}."
    new = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))  # ours alone, mode 700
    try:
        contents = new / "bundle"
        contents.mkdir()
        fd = os.open(contents, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            yield contents, fd
            os.fchmod(fd, 0o755)  # the sandbox's root must pass, and is somebody else at times
        finally:
            os.close(fd)
        if there:
            _exchange(contents, directory, new / "old")
        else:
            contents.rename(directory)
    finally:
        _remove(new)


def _check_replaceable(directory: Path, *, force: bool) -> None:
    if directory.is_symlink():
        raise BundleError(f"{directory} is a symbolic link: name the directory itself")
    if os.listdir(directory) and not force:  # noqa: PTH208
        raise FileExistsError(
            errno.EEXIST, "is not empty; --force replaces the bundle in it", str(directory)
        )
    owner = directory.stat().st_uid
    if os.geteuid() == 0 and owner != 0:
        # who could put links in the place of what is being written as root
        raise BundleError(
            f"it belongs to uid {owner}, who could meddle with what root writes there: name a"
            " directory of root's, or a new one"
        )
    for mounted in _mount_points():
        if any(mounted.is_relative_to(directory / name) for name in _BUNDLE):
            raise BundleError(f"{mounted} is a mount point: unmount it first")


def _mount_points() -> Iterator[Path]:
    """Yield all of this process: see proc(5), /proc/pid/mountinfo, field 5."""
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        yield Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split(" ")[4]))


def _exchange(new: Path, directory: Path, old: Path) -> None:
    """Move a bundle's entries into a directory, and those that are there out of it."""
    old.mkdir()
    moved: list[tuple[Path, Path]] = []
    try:
        for name in _BUNDLE:
            for source, target in ((directory / name, old / name), (new / name, directory / name)):
                if os.path.lexists(source):
                    moved.append((source, target))  # first: a signal may end this at any point
                    source.rename(target)
    except BaseException:
        for source, target in reversed(moved):
            if not os.path.lexists(source):
                target.rename(source)
        raise


def _remove(tree: Path) -> None:
    """Remove a tree, of which parts may belong to subordinate ids."""
    try:
        shutil.rmtree(tree)
    except PermissionError as error:
        try:
            remove_as_subordinate(str(tree))
        except CannotMap as problem:
            raise BundleError(f"cannot remove {tree}: {error.strerror}; {problem}") from None
