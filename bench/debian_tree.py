"""Debian's own toolchain and sources, as inputs of a build.

::

    tree/       a root file system: debootstrap's variant buildd, and what the packages need
                to be built
    inputs/     usr, bin, lib and lib64 of it, as hard links, and a directory for the source
                of each package

A sandbox has no /etc of the tree's, so links through /etc/alternatives are resolved in
inputs/. The tree itself stays what it was: it is what a package is tested in outside.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["BUILD_GID", "BUILD_UID", "DebianTree", "Refused", "reserved", "resolve"]

_TOOLCHAIN = ("bin", "lib", "lib64", "usr")
BUILD_UID, BUILD_GID = 1000, 100

# The build's user, as `specgen bundle` writes it into the sandbox's /etc/passwd.
_PASSWD = f"nixbld:x:{BUILD_UID}:{BUILD_GID}:build user:/build:/bin/sh\n"

_MOUNTS = """
mount --rbind /dev "$0/dev" && mount -t proc proc "$0/proc" &&
mount -t tmpfs -o mode=1777 tmpfs "$0/tmp" || exit 125
"""


class Refused(Exception):
    """What cannot be had here; its text is a sentence for a person."""


@contextlib.contextmanager
def reserved(directory: Path) -> Iterator[None]:
    """Hold a directory for one run alone, making it where it is not there.

    Raises:
        Refused: it is somebody else's, or another run has it.
    """
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    if directory.is_symlink() or directory.stat().st_uid != os.geteuid():
        raise Refused(f"{directory} belongs to somebody else: name another with --work")
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"{directory} is in use: wait, or name another with --work") from None
        yield


class DebianTree:
    """A tree in a directory, that is made where it is not there, and kept."""

    def __init__(self, directory: Path) -> None:
        """Make the tree, which takes a minute or two, in a reserved directory.

        Raises:
            Refused: debootstrap failed, or is not there.
        """
        self.tree = directory / "tree"
        self.inputs = directory / "inputs"
        self._log = directory / "log"
        self._packages = directory / "packages"
        self.inputs.mkdir(exist_ok=True)
        if not self.tree.exists():
            self._debootstrap(directory / "tree.new")

    def release(self) -> str:
        """Return Debian's version, such as 12.11."""
        return (self.tree / "etc/debian_version").read_text().strip()

    def toolchain(self) -> list[str]:
        """Return the names of the inputs that go to the sandbox's /; some machines lack lib64."""
        return [name for name in _TOOLCHAIN if (self.tree / name).exists()]

    def source(self, package: str) -> str:
        """Return the name of a package's source among the inputs: NAME-VERSION.

        What the package needs to be built is then in the toolchain.

        Raises:
            Refused: there is no such package, or what it needs cannot be had.
        """
        names = self._packages.read_text().splitlines() if self._packages.exists() else []
        known = dict(line.split(" ", 1) for line in names)
        if package in known and (self.inputs / known[package]).exists():
            return known[package]
        self._in_tree("apt-get", "--quiet", "update")
        install = ("apt-get", "--quiet", "--yes", "--no-install-recommends")
        self._in_tree(*install, "build-dep", "--", package)
        name = self._unpack(package)
        self._lay_toolchain()
        lines = (f"{key} {value}\n" for key, value in (known | {package: name}).items())
        self._packages.write_text("".join(lines))
        return name

    def built(self, source: str) -> Path:
        """Return where the tree of a source is an input once it has been built."""
        return self.inputs / f"{source}.built"

    def command(self, binds: dict[Path, str], *words: str) -> tuple[str, ...]:
        """Return a command line that runs words in the tree as root.

        It has /dev and /proc, a /tmp of its own, and what is bound: a path on the host to a
        path in the tree. All of it ends with the command.
        """
        mounts = _MOUNTS
        places: list[str] = []
        for source, target in binds.items():
            place = self.tree / target.lstrip("/")
            place.mkdir(exist_ok=True)
            mounts += 'mount --bind "$1" "$2" || exit 125; shift 2\n'
            places += (str(source), str(place))
        mounts += 'exec chroot "$0" "$@"'
        namespaces = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
        return (*namespaces, "sh", "-c", mounts, str(self.tree), *places, *words)

    # --- making it --------------------------------------------------------------------

    def _debootstrap(self, new: Path) -> None:
        if not shutil.which("debootstrap"):
            raise Refused("there is no debootstrap")
        repositories = list(_repositories())
        if not repositories:
            raise Refused("apt knows no repository of Debian here")
        uri, suite, _ = repositories[0]
        shutil.rmtree(new, ignore_errors=True)
        self._run(("debootstrap", "--variant=buildd", suite, str(new), uri))
        lines = [
            f"{kind} {' '.join(repository)}\n"
            for repository in repositories
            for kind in ("deb", "deb-src")
        ]
        (new / "etc/apt/sources.list").write_text("".join(lines))
        for file in Path("/etc/apt/apt.conf.d").iterdir():
            if "Acquire" in file.read_text():  # how this machine reaches its repositories
                shutil.copy(file, new / "etc/apt/apt.conf.d")
        shutil.copy("/etc/resolv.conf", new / "etc/resolv.conf")
        with (new / "etc/passwd").open("a") as passwd:
            passwd.write(_PASSWD)
        new.rename(self.tree)

    def _in_tree(self, *words: str, at: str = "/") -> None:
        environment = ("env", "-C", at, "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
        self._run(self.command({}, *environment, *words))

    def _run(self, command: tuple[str, ...]) -> None:
        with self._log.open("ab") as log:
            status = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
            ).returncode
        if status:
            last = self._log.read_text(errors="replace").splitlines()[-5:]
            raise Refused("\n  ".join((f"failed, see {self._log}:", *last)))

    def _unpack(self, package: str) -> str:
        place = self.tree / "source"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        self._in_tree("apt-get", "--quiet", "source", "--", package, at="/source")
        (unpacked,) = (entry for entry in place.iterdir() if entry.is_dir())
        target = self.inputs / unpacked.name
        for old in (target, self.built(target.name)):
            shutil.rmtree(old, ignore_errors=True)
        unpacked.rename(target)
        # Debian's patches are newer than all else: make would begin with Automake.
        now = time.time()
        for path in (target, *target.rglob("*")):
            os.utime(path, (now, now), follow_symlinks=False)
        shutil.rmtree(place)
        return target.name

    def _lay_toolchain(self) -> None:
        for name in self.toolchain():
            target = self.inputs / name
            shutil.rmtree(target, ignore_errors=True)
            # Followed only where it is a link itself: /bin may be one to /usr/bin.
            self._run(("cp", "-alH", str(self.tree / name), str(target)))
            for parent, directories, files in os.walk(target):
                for entry in (*directories, *files):
                    resolve(Path(parent) / entry, self.tree)


def _repositories() -> Iterator[tuple[str, str, str]]:
    """Yield what this machine's apt uses: URI, suite and component, each once."""
    fields = ("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)")
    which = ("Created-By: Packages", "Origin: Debian")
    printed = subprocess.run((*fields, *which), capture_output=True, text=True, check=True).stdout
    for line in dict.fromkeys(printed.splitlines()):
        uri, suite, component = line.split()
        yield uri, suite, component


_LINKS = 40  # as many as the kernel follows, path_resolution(7)


def resolve(path: Path, tree: Path) -> None:
    """Let a link through /etc lead to where it ends; leave out one that ends nowhere."""
    if not path.is_symlink() or not str(path.readlink()).startswith("/etc/"):
        return
    target = path.readlink()
    for _ in range(_LINKS):
        place = tree / str(target).lstrip("/")
        if not place.is_symlink():
            break
        target = target.parent / place.readlink()
    path.unlink()
    if not place.is_symlink() and place.exists() and target.parts[1] in _TOOLCHAIN:
        path.symlink_to(target)
