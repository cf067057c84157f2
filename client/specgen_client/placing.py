"""Putting a bundle in its place: whole or not at all.

A bundle is made in a directory of its own beside DIR, or in DIR where that is there, which only
its maker can enter. All is done below descriptors: who may rename a directory on the way to DIR
cannot lead elsewhere what is written. The file .specgen-bundle marks what is ours to replace,
and a lock on it says that its maker is at work.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from .bundle_error import BundleError
from .directories import exists, make_directory, open_below, open_directory
from .files import hidden_prefix, write_new
from .mount_table import mount_points
from .user_namespace import CannotMap, remove_as_subordinate

__all__ = ["MARKER", "new_contents"]

MARKER = ".specgen-bundle"
_MARKER_TEXT = b"specgen-bundle: specgen bundle --force may replace what it wrote here\n"
_MARKER_START = b"specgen-bundle"
_INSIDE = "specgen"
"""What the directory in which a bundle is made is named after, where it lies in DIR."""
_BUNDLE = ("config.json", "root", "scratch", "inputs")
"""In the order in which an old bundle leaves; a new one arrives in the other."""


@contextlib.contextmanager
def new_contents(directory: Path, *, force: bool, admit: Callable[[int], None]) -> Iterator[int]:
    """Yield a new directory, by descriptor, whose entries end up in ``directory``.

    They do when the block ends well. Otherwise nothing stays, and an old bundle is back. What
    an earlier run left that was killed is removed.

    Args:
        directory: a new directory, an empty one, or with ``force`` one with a bundle.
        force: replace the bundle that is in it.
        admit: is given the descriptor of ``directory``, and sets who may enter it.
    """
    parent, directory = _opened_parent(directory)
    try:
        name = directory.name or "."  # of /
        if exists(parent, name):
            with _in_directory(parent, name, directory, force=force, admit=admit) as made:
                yield made
            return
        _remove_leftovers(parent, name)
        with _workshop(parent, name, directory) as shop:
            contents = make_directory(shop, "bundle", 0o700)
            try:
                write_new(contents, MARKER, _MARKER_TEXT)
                yield contents
                admit(contents)
            finally:
                os.close(contents)
            try:
                os.rename("bundle", name, src_dir_fd=shop, dst_dir_fd=parent)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(directory)) from None
    finally:
        os.close(parent)


def _opened_parent(directory: Path) -> tuple[int, Path]:
    """Return the directory above one that need not be there, and where that really lies."""
    directory = directory.absolute()
    if directory.name == "..":
        fd = open_directory(directory)
        directory = _really(fd)
        os.close(fd)
    parent = open_directory(directory.parent)
    return parent, _really(parent) / directory.name


def _really(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}").readlink()


@contextlib.contextmanager
def _in_directory(
    parent: int, name: str, shown: Path, *, force: bool, admit: Callable[[int], None]
) -> Iterator[int]:
    """Yield a new directory whose entries end up in one that is there.

    It stays itself: its parent may not be ours to write to, it may be a mount point, or
    somebody's working directory.
    """
    if stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        raise BundleError(f"{shown} is a symbolic link: name the directory itself")
    try:
        fd = open_below(parent, name)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(shown)) from None
    try:
        _check_replaceable(fd, shown, force=force)
        with _marked(fd):
            if not force and any(exists(fd, name) for name in _BUNDLE):
                raise _not_empty(shown)  # another run wrote it since we looked
            _remove_leftovers(fd, _INSIDE)
            with _workshop(fd, _INSIDE, shown) as shop:
                contents = make_directory(shop, "bundle", 0o700)
                try:
                    yield contents
                    _exchange(contents, fd, shop, admit)
                finally:
                    os.close(contents)
    except BlockingIOError:
        raise BundleError("another specgen bundle is writing there") from None
    finally:
        os.close(fd)


def _check_replaceable(fd: int, shown: Path, *, force: bool) -> None:
    """Raise for a directory that is neither empty nor ours to write to."""
    leftovers = _leftover_names(_INSIDE)
    there = sorted(entry for entry in os.listdir(fd) if not leftovers.fullmatch(entry))
    if there not in ([], [MARKER]) and not force:
        raise _not_empty(shown)
    status = os.fstat(fd)
    owner = status.st_uid
    if status.st_mode & stat.S_ISVTX and status.st_mode & stat.S_IWOTH:
        raise BundleError("it is everybody's, as /tmp is: name a directory in it")
    if owner != os.geteuid():
        # who could put links in the place of what is being written, and lets in whom they like
        raise BundleError(
            f"it belongs to uid {owner}, who could meddle with what is written there: name a"
            " directory of your own, or a new one"
        )
    if there and not _is_marked(fd):
        raise BundleError(
            f"it holds {', '.join(there[:5])}{' ...' if len(there) > 5 else ''} and no {MARKER}, so"
            " specgen bundle did not write it: name another directory, or empty it yourself"
        )
    for mounted in mount_points():
        if any(mounted.path.is_relative_to(shown / name) for name in _BUNDLE):
            raise BundleError(f"{mounted.path} is a mount point: unmount it first")


def _not_empty(shown: Path) -> FileExistsError:
    return FileExistsError(
        errno.EEXIST, "is not empty; --force replaces the bundle in it", str(shown)
    )


def _is_marked(fd: int) -> bool:
    """Return whether we, or root for us, marked a directory as a bundle."""
    try:
        marker = os.open(MARKER, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd)
    except OSError:
        return False
    try:
        status = os.fstat(marker)
        ours = stat.S_ISREG(status.st_mode) and status.st_uid in (0, os.geteuid())
        return ours and os.read(marker, len(_MARKER_START)) == _MARKER_START
    finally:
        os.close(marker)


@contextlib.contextmanager
def _marked(fd: int) -> Iterator[None]:
    """Mark a directory as ours, and hold it; the mark stays where a bundle comes to be.

    Raises:
        BlockingIOError: another run holds it.
        FileNotFoundError: another run has removed it.
    """
    new = not exists(fd, MARKER)
    if new:
        write_new(fd, MARKER, _MARKER_TEXT)
    marker = os.open(MARKER, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    try:
        fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(marker).st_nlink:
            raise FileNotFoundError
        yield
    except BaseException:
        if new:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(MARKER, dir_fd=fd)
        raise
    finally:
        os.close(marker)


# --- the directory in which a bundle is made --------------------------------------------


@contextlib.contextmanager
def _workshop(parent: int, name: str, shown: Path) -> Iterator[int]:
    """Yield a new directory that is removed in the end, with what is still in it."""
    while True:
        shop_name = f"{hidden_prefix(name)}{secrets.token_hex(4)}"
        try:
            shop = make_directory(parent, shop_name, 0o700)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(shown)) from None
        try:
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(_marked(shop))
                except (FileNotFoundError, BlockingIOError):
                    continue  # another run takes it for a leftover
                stack.callback(_remove, parent, shop_name, shop)
                yield shop
                return
        finally:
            os.close(shop)


def _leftover_names(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(hidden_prefix(name)) + "[0-9a-f]{8}")


def _remove_leftovers(parent: int, name: str) -> None:
    """Remove the workshops of runs that were killed."""
    names = _leftover_names(name)
    for entry in os.listdir(parent):
        if names.fullmatch(entry):
            with contextlib.suppress(OSError, BundleError):
                _remove_if_left(parent, entry)


def _remove_if_left(parent: int, entry: str) -> None:
    shop = open_below(parent, entry)
    try:
        if os.fstat(shop).st_uid != os.geteuid():
            return
        if not exists(shop, MARKER):
            os.rmdir(entry, dir_fd=parent)
        elif _is_marked(shop):
            with _marked(shop):  # else it is being used
                _remove(parent, entry, shop)
    finally:
        os.close(shop)


def _exchange(new: int, fd: int, shop: int, admit: Callable[[int], None]) -> None:
    """Move a bundle's entries into a directory, and those that are there out of it.

    Where it is killed meanwhile, there is no config.json, so nobody runs half of each.
    """
    old = make_directory(shop, "old", 0o700)
    before = os.fstat(fd)
    moved: list[tuple[str, int, int]] = []
    moves = [*((n, fd, old) for n in _BUNDLE), *((n, new, fd) for n in reversed(_BUNDLE))]
    try:
        admit(fd)
        for name, source, target in moves:
            if exists(source, name):
                moved.append((name, source, target))  # first: a signal may end this at any point
                os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
    except BaseException:
        for name, source, target in reversed(moved):
            if not exists(source, name):
                os.rename(name, name, src_dir_fd=target, dst_dir_fd=source)
        os.fchown(fd, -1, before.st_gid)
        os.fchmod(fd, stat.S_IMODE(before.st_mode))
        raise
    finally:
        os.close(old)


def _remove(parent: int, name: str, shop: int) -> None:
    """Remove a workshop, of which parts may belong to subordinate ids."""
    for made in ("bundle", "old"):
        try:
            shutil.rmtree(made, dir_fd=shop)
        except FileNotFoundError:
            pass
        except PermissionError as error:
            try:
                remove_as_subordinate(shop, made)
            except CannotMap as problem:
                raise BundleError(
                    f"cannot remove what was there, it is now {name}: {error.strerror}; {problem}"
                ) from None
    os.unlink(MARKER, dir_fd=shop)
    with contextlib.suppress(OSError):  # who may rename it may have put another in its place
        os.rmdir(name, dir_fd=parent)
