"""Writing a whole OCI bundle: a directory that runc and crun run as it stands.

::

    config.json      the spec
    inputs/          one entry for each input: empty, a copy, or a link to a directory
    root/            the skeleton of the root file system: mount points, etc/passwd ...
    scratch/NAME/    what the build may write to, and where its outputs come to lie

Everything is made in a new directory with nothing in it, so no path of a request can lead
out of the bundle, and is put in place by renaming once it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path

import msgspec

from specgen.v1.specgen_pb2 import SpecJSON
from specgen_core import BUILD_GID, BUILD_UID, Request, input_path, oci, read_request
from specgen_core.paths import path_problems
from tvix.build.protos.build_pb2 import BuildRequest

from .host_checks import host_problems
from .user_namespace import CannotMap, chown_to_subordinate, remove_as_subordinate

__all__ = ["BundleError", "write_bundle"]


class BundleError(Exception):
    """A bundle that cannot be written, or not there; its text is a sentence for a person."""


def write_bundle(
    request: BuildRequest,
    directory: Path,
    *,
    spec: SpecJSON,
    inputs: Path | None = None,
    copy_inputs: bool = False,
    force: bool = False,
) -> list[str]:
    """Write the bundle of a build request, whole or not at all.

    Args:
        request: what is to be built.
        directory: where to write it: a new directory, or one that is empty.
        spec: what the service, or ``specgen_core.answer``, answered to the request.
        inputs: a directory that holds the inputs, each under its name.
        copy_inputs: copy them, instead of making ``inputs/`` a link to that directory.
        force: replace the bundle that is in the directory. What else is in it stays.

    Returns:
        What will keep it from running on this host, a sentence each.

    Raises:
        InvalidRequest: the request breaks rules.
        BundleError: the request asks for a file where a directory must be, or the like; or
            an input cannot be copied.
        FileExistsError: the directory is not empty, and ``force`` is not set.
        OSError: it cannot be written.
    """
    read = read_request(request)
    try:
        config = oci.decode(spec.json)
    except msgspec.DecodeError as error:
        raise BundleError(f"the spec is no config.json of this service: {error}") from None
    tree = _tree(read, config, inputs)
    owner = _build_owner(config)
    problems = list(host_problems(read, config, directory.absolute(), inputs))
    if force and inputs is not None and inputs.resolve().is_relative_to(directory.resolve()):
        raise BundleError(f"{inputs} lies in {directory}, the bundle that is to be replaced")
    with _new_contents(directory, force=force) as (path, fd):
        tree.write(fd, owner if os.geteuid() == 0 else None)
        _write_file(fd, "config.json", spec.json.encode())
        _write_inputs(read, path, inputs, copy=copy_inputs)
        if os.geteuid() != 0:
            scratch = [str(path / name) for name in tree.scratch_directories()]
            problems += _give_away(scratch, owner, rootless=_has_user_namespace(config))
    return problems


# --- what goes where ------------------------------------------------------------------

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


def _tree(request: Request, spec: oci.Spec, inputs: Path | None) -> _Tree:
    """Return all that is in root/ and scratch/."""
    tree = _Tree()
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


class _Tree:
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
                _write_file(fd, path, contents)
            if owner is not None and path.startswith("scratch/"):
                os.chown(path, *owner, dir_fd=fd, follow_symlinks=False)


def _check_stays_within(path: str) -> None:
    """Raise BundleError for a path that leads up; the spec may be anybody's who has a server."""
    if path_problems(path):
        raise BundleError(f"the spec names {path!r}, which is no path in a bundle")


# --- writing --------------------------------------------------------------------------


def _write_file(fd: int, path: str, contents: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600, dir_fd=fd), "wb") as file:
        file.write(contents)
        os.fchmod(file.fileno(), 0o644)


def _write_inputs(request: Request, bundle: Path, inputs: Path | None, *, copy: bool) -> None:
    place = bundle / "inputs"
    if inputs is not None and not copy:
        place.symlink_to(inputs.resolve())
        return
    place.mkdir()
    place.chmod(0o755)
    if inputs is not None:
        for input_ in request.inputs:
            _copy_node(inputs / input_.name, place / input_.name)


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


_BUNDLE = ("config.json", "inputs", "root", "scratch")


@contextlib.contextmanager
def _new_contents(directory: Path, *, force: bool) -> Iterator[tuple[Path, int]]:
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


# --- whose it is ----------------------------------------------------------------------


def _has_user_namespace(spec: oci.Spec) -> bool:
    return any(namespace.type == "user" for namespace in spec.linux.namespaces)


def _build_owner(spec: oci.Spec) -> tuple[int, int] | None:
    """Return the build's user as the host sees it, or None where it is not mapped."""
    if not _has_user_namespace(spec):
        return BUILD_UID, BUILD_GID
    uid = _on_host(spec.linux.uid_mappings, BUILD_UID)
    gid = _on_host(spec.linux.gid_mappings, BUILD_GID)
    return None if uid is None or gid is None else (uid, gid)


def _on_host(mappings: tuple[oci.IdMap, ...], container_id: int) -> int | None:
    for mapping in mappings:
        offset = container_id - mapping.container_id
        if 0 <= offset < mapping.size:
            return mapping.host_id + offset
    return None


def _give_away(
    scratch: list[str], owner: tuple[int, int] | None, *, rootless: bool
) -> Iterator[str]:
    """Give the scratch directories to the build's user, without being root.

    In a user namespace the build can write to them as well while they are still ours, by
    CAP_DAC_OVERRIDE, so there nothing is lost where it cannot be done.
    """
    if owner is None or owner == (os.geteuid(), os.getegid()) or not scratch:
        return
    if not rootless:
        yield (
            "the scratch directories are yours, and a rootful build, as uid "
            f"{BUILD_UID}, cannot write there: write this bundle as root"
        )
        return
    with contextlib.suppress(CannotMap):
        chown_to_subordinate(*owner, scratch)
