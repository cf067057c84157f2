"""What lies in a bundle's inputs/."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from specgen_core import Request

from .bundle_error import BundleError
from .directories import make_directory, open_below, open_directory

__all__ = ["Progress", "write_inputs"]

Progress = Callable[[int, int], None]
"""Called after each file that was copied, with the files and the bytes so far."""

_MAX_DEPTH = 400  # a directory that is open in source and target for each level
_CHUNK_BYTES = 16 * 1024 * 1024


def write_inputs(
    request: Request, bundle: int, inputs: Path | None, *, copy: bool, progress: Progress | None
) -> None:
    """Make a bundle's inputs/: empty, a copy of the inputs, or a link to their directory.

    Args:
        request: the request whose inputs they are.
        bundle: descriptor of the bundle's directory.
        inputs: the directory of the inputs, each under its name; None for an empty inputs/.
        copy: copy them, instead of making a link.
        progress: what to call after each file that was copied.

    Raises:
        BundleError: an input is, or has in it, something else than files, directories and
            symlinks.
        OSError: one cannot be read or written.
    """
    if inputs is not None and not copy:
        os.symlink(inputs.resolve(), "inputs", dir_fd=bundle)
        return
    target = make_directory(bundle, "inputs", 0o755)
    try:
        if inputs is not None:
            source = open_directory(inputs)
            names = list(request.inputs)
            _Copy(progress).entries(source, target, names, inputs)
    finally:
        os.close(target)


class _Copy:
    """Copies what the store knows of a node: names, contents, executable bits and links.

    Whoever owns the source may change it meanwhile. So each name is opened once, as what it
    then is, without following a link; all else is asked of the descriptor.
    """

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._files = 0
        self._bytes = 0
        self._open: list[int] = []

    def entries(self, source: int, target: int, names: list[str], shown: Path) -> None:
        """Copy these entries of a directory, with all below them; closes the source."""
        self._open = [source]
        todo = [(source, target, shown, names)]
        try:
            while todo:
                source, target, shown, names = todo[-1]
                if not names:
                    todo.pop()
                    os.close(self._open.pop())
                    if todo:
                        os.close(self._open.pop())
                    continue
                path = shown / names[-1]
                try:
                    below = self._node(source, target, names.pop(), path)
                except OSError as error:
                    raise OSError(error.errno, error.strerror, str(path)) from None
                if below:
                    if len(todo) > _MAX_DEPTH:
                        raise BundleError(f"cannot copy {path}: it lies too deep")
                    todo.append((*below, path, os.listdir(below[0])))  # noqa: PTH208
        finally:
            while self._open:
                os.close(self._open.pop())

    def _node(self, source: int, target: int, name: str, shown: Path) -> tuple[int, int] | None:
        """Copy one node; of a directory only itself, and return it, in source and target."""
        node = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
        try:
            status = os.fstat(node)
            if stat.S_ISDIR(status.st_mode):
                self._open.append(make_directory(target, name, 0o755))
                self._open.append(open_below(node, "."))
                return self._open[-1], self._open[-2]
            if stat.S_ISREG(status.st_mode):
                self._file(node, target, name, status)
            elif stat.S_ISLNK(status.st_mode):
                os.symlink(os.readlink("", dir_fd=node), name, dir_fd=target)
            else:
                raise BundleError(f"cannot copy {shown}: no file, directory or symlink")
            return None
        finally:
            os.close(node)

    def _file(self, node: int, target: int, name: str, status: os.stat_result) -> None:
        # a descriptor by O_PATH cannot be read from; this opens the same file, see proc(5)
        source = os.open(f"/proc/self/fd/{node}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            copy = os.open(name, flags, 0o600, dir_fd=target)
            try:
                left = status.st_size  # no more, even if somebody goes on appending to it
                while left and (sent := os.sendfile(copy, source, None, min(left, _CHUNK_BYTES))):
                    left -= sent
                os.fchmod(copy, 0o755 if status.st_mode & stat.S_IXUSR else 0o644)
            finally:
                os.close(copy)
        finally:
            os.close(source)
        self._files += 1
        self._bytes += status.st_size
        if self._progress:
            self._progress(self._files, self._bytes)
