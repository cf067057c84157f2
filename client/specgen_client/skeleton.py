"""What lies in a bundle's root/ and scratch/."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from itertools import count
from pathlib import Path

from specgen_core import BUILD_GID, BUILD_UID, Request, input_path, oci
from specgen_core.paths import path_problems

from .bundle_error import BundleError
from .files import write_new

__all__ = ["Tree", "tree_of"]

_PASSWD = f"""\
root:x:0:0:root:/build:/bin/sh
nixbld:x:{BUILD_UID}:{BUILD_GID}:build user:/build:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
"""
_GROUP = f"""\
root:x:0:
nixbld:x:{BUILD_GID}:
nogroup:x:65534:
"""
_HOSTS = """\
127.0.0.1 localhost
::1 localhost
"""


def tree_of(request: Request, spec: oci.Spec, inputs: Path | None) -> Tree:
    """Return all that is in root/ and scratch/."""
    tree = Tree()
    tree.add_directory("root", "the root file system")
    tree.add_directory("scratch", "scratch paths")
    kinds = {input_path(input_.name): input_.kind for input_ in request.inputs}
    sandbox = _Sandbox()
    for mount in spec.mounts:
        if mount.type == "none" and mount.source.startswith("scratch/"):
            tree.add_directory(mount.source, f"the scratch path {mount.destination}")
        # Where the place lies in another mount's directory, it is there or the runtime
        # makes it: neither is part of the bundle.
        place = sandbox.place_of(mount.destination)
        if place is not None:
            needed_for = f"the mount at {mount.destination}"
            if _is_directory(mount, kinds, inputs):
                tree.add_directory(place, needed_for, mode=_mode(mount))
            else:
                tree.add_file(place, None, needed_for)
        sandbox.add(mount)

    working_dir = sandbox.place_of(spec.process.cwd)
    if working_dir is not None:
        tree.add_directory(working_dir, "the working directory")
    for name, contents in (("passwd", _PASSWD), ("group", _GROUP), ("hosts", _HOSTS)):
        with contextlib.suppress(BundleError):  # a request may have other plans for /etc
            tree.add_file(f"root/etc/{name}", contents.encode(), f"/etc/{name}")
    for i, file in enumerate(request.additional_files):
        place = sandbox.place_of(f"/{file.path}")
        if place is None:
            raise BundleError(
                f"additional_files[{i}].path: {file.path} lies at or in the mount at "
                f"{sandbox.mount_at(f'/{file.path}')}, so the build would not see it"
            )
        tree.add_file(place, file.contents, f"additional_files[{i}]")
    return tree


_PATH_CHARS = 4096  # PATH_MAX


class _Sandbox:
    """Which of the mounts so far is seen where in the sandbox."""

    def __init__(self) -> None:
        self._mounts: dict[str, tuple[int, oci.Mount]] = {}
        self._numbers = count()

    def add(self, mount: oci.Mount) -> None:
        self._mounts[mount.destination] = (next(self._numbers), mount)

    def mount_at(self, path: str) -> str:
        """Return the destination of the mount that a path leads into."""
        mount = self._seen_at(path)
        return mount.destination if mount else "/"

    def _seen_at(self, path: str) -> oci.Mount | None:
        """Return the mount that a path leads into: the last one at or above it."""
        if not path.startswith("/"):
            raise BundleError(f"the spec names {path!r}, which is no path in a bundle")
        if len(path) > _PATH_CHARS:
            raise BundleError(f"{path[:60]}... is longer than a path can be")
        above = [path[:i] for i, char in enumerate(path) if char == "/" and i > 0]
        found = [self._mounts[p] for p in ("/", *above, path) if p in self._mounts]
        return max(found, key=lambda numbered: numbered[0])[1] if found else None

    def place_of(self, path: str) -> str | None:
        """Return where in root/ or scratch/ a path lies; None if in another mount."""
        mount = self._seen_at(path)
        if mount is None:
            return f"root{path}".rstrip("/")
        if mount.type == "none" and mount.source.startswith("scratch/"):
            return mount.source + path[len(mount.destination) :]
        return None


_FILES = ("/bin/sh", "/etc/hosts", "/etc/resolv.conf", "/etc/services")


def _is_directory(mount: oci.Mount, kinds: Mapping[str, str], inputs: Path | None) -> bool:
    """Whether a mount's source is a directory; the mount point must be the same."""
    if mount.type != "none" or mount.source.startswith("scratch/"):
        return True
    kind = kinds.get(mount.source)
    if kind == "symlink":  # mounted is what it points to
        return inputs is not None and (inputs / mount.source.removeprefix("inputs/")).is_dir()
    if kind is not None:
        return kind == "directory"
    source = Path(mount.source)
    return source.is_dir() if source.exists() else mount.destination not in _FILES


def _mode(mount: oci.Mount) -> int | None:
    """Return the mode of a mount point: runc gives a tmpfs the one it has, whatever the spec."""
    given = [option for option in mount.options if option.startswith("mode=")]
    return int(given[-1].removeprefix("mode="), 8) if mount.type == "tmpfs" and given else None


class Tree:
    """Directories and files to make in a bundle, parents first; none of them is a link."""

    def __init__(self) -> None:
        self._contents: dict[str, bytes | None] = {}
        """By path; None for a directory."""
        self._needed_for: dict[str, str] = {}
        self._modes: dict[str, int] = {}

    def add_directory(self, path: str, needed_for: str, *, mode: int | None = None) -> None:
        """Add a directory and those above it; raises BundleError if one of them is a file."""
        if mode is not None:
            self._modes[path] = mode
        if self._contents.get(path, b"") is None:
            return
        _check_stays_within(path)
        for i in (*(i for i, char in enumerate(path) if char == "/"), len(path)):
            parent = path[:i]
            if self._contents.setdefault(parent, None) is not None:
                raise self._conflict(parent, directory_for=needed_for)
            self._needed_for.setdefault(parent, needed_for)

    def add_file(self, path: str, contents: bytes | None, needed_for: str) -> None:
        """Add a file, or give it these contents; raises BundleError if it is a directory."""
        _check_stays_within(path)
        self.add_directory(path.rpartition("/")[0], needed_for)
        if self._contents.get(path, b"") is None:
            raise self._conflict(path, file_for=needed_for)
        if contents is not None or path not in self._contents:
            self._contents[path] = contents or b""
            self._needed_for[path] = needed_for

    def _conflict(self, path: str, *, directory_for: str = "", file_for: str = "") -> BundleError:
        return BundleError(
            f"{path} must be a directory for {directory_for or self._needed_for[path]}, "
            f"and a file for {file_for or self._needed_for[path]}"
        )

    def scratch_directories(self) -> list[str]:
        """Return the directories of scratch/, by path in the bundle."""
        return [path for path in self._contents if re.fullmatch("scratch/[^/]+", path)]

    def write(self, fd: int, owner: tuple[int, int] | None) -> None:
        """Make it all below a directory; what is in a scratch directory gets the owner."""
        for path, contents in self._contents.items():
            if contents is None:
                os.mkdir(path, dir_fd=fd)
                os.chmod(path, self._modes.get(path, 0o755), dir_fd=fd)  # whatever the umask
            else:
                write_new(fd, path, contents)
            if owner is not None and path.startswith("scratch/"):
                os.chown(path, *owner, dir_fd=fd, follow_symlinks=False)


def _check_stays_within(path: str) -> None:
    """Raise BundleError for a path that leads up; the spec may be anybody's who has a server."""
    if path_problems(path):
        raise BundleError(f"the spec names {path!r}, which is no path in a bundle")
