"""Real runtimes: writing bundles and running them, as root and as an unprivileged user.

A build runs in one of six ways: a runtime (runc, crun) times a mode. It takes root.

Two facts about hosts shape the command lines (seen with runc 1.1.5 and crun 1.8.1):

- crun refuses a host with hybrid cgroups ("cgroups in hybrid mode not supported"). It runs
  in a mount namespace of its own where /sys/fs/cgroup is a cgroup2 mount, and with
  ``--cgroup-manager=disabled``. On a cgroup2 host the remount changes nothing.
- process.terminal = true needs a controlling terminal on the runtime's side. ``script``
  provides one.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import enum
import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support import require

from specgen_client.cli import main
from tvix.build.protos.build_pb2 import BuildRequest
from tvix.castore.protos.castore_pb2 import Node

DEFAULT_TIMEOUT = 60.0
"""Seconds; runc needs about 5 for 2000 inputs."""

_USERS = "specgen-test-"
USER = f"{_USERS}{os.getpid()}"
"""The unprivileged user: made for this run where a test needs it, and removed at its end."""

SHELL = shutil.which("busybox") or ""
TOOLS = (
    "cat",
    "cp",
    "id",
    "ln",
    "ls",
    "mkdir",
    "mv",
    "readlink",
    "rm",
    "rmdir",
    "sha256sum",
    "touch",
    "uname",
)


class Mode(enum.Enum):
    """Who runs the runtime, and which kind of spec it gets."""

    ROOTFUL = "root, rootful spec"
    USERNS = "root, rootless spec with id mappings"
    UNPRIVILEGED = "an unprivileged user, rootless spec with subordinate ids"


@dataclasses.dataclass(frozen=True)
class Runtime:
    """A runtime's name and the flags it needs ahead of ``run``."""

    name: str
    flags: tuple[str, ...] = ()
    own_cgroup2: bool = False
    """Whether it must run where /sys/fs/cgroup is a cgroup2 mount."""

    def __str__(self) -> str:
        return self.name

    @cache  # noqa: B019 - there are two of them
    def version(self) -> str:
        return subprocess.check_output((self.name, "--version"), text=True).split()[2]


RUNC = Runtime("runc")
CRUN = Runtime("crun", ("--cgroup-manager=disabled",), own_cgroup2=True)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run came to. Standard output and error are one text, as a terminal mixes them."""

    exit_code: int | None
    """None: the timeout struck and the container was killed."""
    output: str
    command: tuple[str, ...]


# runc 1.1 mounts its own program for a moment before it looks at the bundle. To unmount it fails
# while somebody else makes a mount namespace.
_FAILED_TO_START = "could not ensure we are a cloned binary"
_TRIES = 5


def run(
    runtime: Runtime,
    mode: Mode,
    bundle: Path,
    *,
    tty: bool = False,
    timeout: float = DEFAULT_TIMEOUT,
    extra_flags: Sequence[str] = (),
    by: Sequence[str] = (),
) -> Outcome:
    """Run the bundle to its end.

    The unprivileged user must be able to reach it. ``tty`` gives the runtime a terminal,
    which a spec with process.terminal = true needs. ``by`` are the words of a command that
    executes the runtime.
    """
    for _ in range(_TRIES):
        outcome = _run_once(runtime, mode, bundle, tty, timeout, extra_flags, by)
        if _FAILED_TO_START not in outcome.output:
            break
    return outcome


def _run_once(
    runtime: Runtime,
    mode: Mode,
    bundle: Path,
    tty: bool,
    timeout: float,
    extra_flags: Sequence[str],
    by: Sequence[str],
) -> Outcome:
    with _state_dir(mode) as state:
        container = f"t-{uuid.uuid4().hex[:12]}"
        base = (runtime.name, "--root", str(state / "containers"), *runtime.flags, *extra_flags)
        around = (*_surroundings(runtime, mode, state), *by)
        command = (*around, *base, "run", "--bundle", str(bundle), container)
        if tty:
            command = ("script", "-qec", shlex.join(command), "/dev/null")
        process = subprocess.Popen(
            command,
            # Not DEVNULL: crun gives these to the container's user with fchown, and as root
            # that reaches the host's own /dev/null.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout)
            exit_code: int | None = process.returncode
        except subprocess.TimeoutExpired:
            delete = (*around, *base, "delete", "--force", container)
            subprocess.run(delete, capture_output=True, check=False)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            exit_code = None
    return Outcome(exit_code, output.decode(errors="replace").replace("\r\n", "\n"), command)


# The tmpfs of a host with cgroup1 holds a mount per controller: unmount the whole tree.
_CGROUP2 = (
    'umount --recursive /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"'
)


def _surroundings(runtime: Runtime, mode: Mode, state: Path) -> tuple[str, ...]:
    """Return the words to put before the runtime's own command line."""
    words: tuple[str, ...] = ()
    if runtime.own_cgroup2:
        words += ("unshare", "--mount", "--propagation", "private", "sh", "-c", _CGROUP2, "sh")
    if mode is Mode.UNPRIVILEGED:
        entry = pwd.getpwnam(USER)
        words += (
            *("setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}"),
            *("--init-groups", "--inh-caps=-all", "env", "-i", f"HOME={entry.pw_dir}"),
            *(f"USER={USER}", f"PATH={os.environ['PATH']}", f"XDG_RUNTIME_DIR={state}"),
        )
    return words


@contextlib.contextmanager
def _state_dir(mode: Mode) -> Iterator[Path]:
    """Yield a directory for the runtime's state, owned by the user who runs it."""
    path = Path(tempfile.mkdtemp(prefix="specgen-run-"))
    try:
        if mode is Mode.UNPRIVILEGED:
            entry = pwd.getpwnam(USER)
            os.chown(path, entry.pw_uid, entry.pw_gid)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


# --- what must be there ---------------------------------------------------------------

EVERY_WAY = [
    pytest.param(runtime, mode, id=f"{runtime.name}-{mode.name.lower()}")
    for runtime in (RUNC, CRUN)
    for mode in Mode
]


USER_TOOLS = ("newuidmap", "newgidmap", "useradd", "usermod", "userdel")


def require_runtime(runtime: Runtime, mode: Mode) -> None:
    """Skip the test, or fail it, where a bundle cannot be run in this way."""
    require(os.geteuid() == 0, "root")
    tools = (runtime.name, "busybox", "unshare", "setpriv", "script")
    if mode is Mode.UNPRIVILEGED:
        tools += USER_TOOLS
    for tool in tools:
        require(shutil.which(tool), tool)
    if mode is Mode.UNPRIVILEGED:
        _make_user()


@cache
def _make_user() -> None:
    _remove_users()
    subprocess.run(("useradd", "--no-create-home", USER), check=True, capture_output=True)
    atexit.register(_remove_user, USER)
    for file, flag in (("/etc/subuid", "--add-subuids"), ("/etc/subgid", "--add-subgids")):
        entries = Path(file).read_text().splitlines() if Path(file).exists() else []
        if not any(entry.startswith(f"{USER}:") for entry in entries):
            last = max((sum(map(int, e.split(":")[1:])) for e in entries if e), default=100_000)
            first = max(last, 100_000)
            usermod = ("usermod", flag, f"{first}-{first + 65535}", USER)
            subprocess.run(usermod, check=True, capture_output=True)


def _remove_users() -> None:
    """Remove the users of runs that were killed."""
    for entry in pwd.getpwall():
        if entry.pw_name.startswith(_USERS):
            pid = entry.pw_name.removeprefix(_USERS)
            if not Path("/proc", pid).exists():
                _remove_user(entry.pw_name)


def _remove_user(name: str) -> None:
    # with its group, and its subordinate ids
    subprocess.run(("userdel", name), check=True, capture_output=True)


# --- bundles --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Lab:
    """A directory that every user can reach, for inputs and bundles."""

    path: Path

    def inputs(self, **entries: str | bytes | dict[str, str]) -> Path:
        """Make a directory of inputs: files, and directories of files; always with ``tools``."""
        directory = self.path / "inputs"
        directory.mkdir(exist_ok=True)
        tools = directory / "tools"
        if not tools.exists():
            require(SHELL, "busybox")
            tools.mkdir()
            shutil.copyfile(SHELL, tools / "busybox")
            (tools / "busybox").chmod(0o755)
            for name in TOOLS:
                (tools / name).symlink_to("busybox")
        for name, entry in entries.items():
            if isinstance(entry, dict):
                (directory / name).mkdir()
                for file, contents in entry.items():
                    (directory / name / file).write_text(contents)
            else:
                contents = entry.encode() if isinstance(entry, str) else entry
                (directory / name).write_bytes(contents)
        return directory

    def bundle(
        self, mode: Mode, request: BuildRequest, *flags: str | Path, name: str = "bundle"
    ) -> Path:
        """Write a bundle with the ``specgen`` command, as the user who is to run it."""
        directory = self.path / "builds" / name
        flags = ("--sandbox-shell", SHELL, *flags)
        if mode is Mode.ROOTFUL:
            flags = ("--rootful", *flags)
        done = specgen(mode, "bundle", "-", directory, "--format", "binary", *flags, stdin=request)
        assert done.exit_code == 0, done.output
        return directory


@contextlib.contextmanager
def new_lab() -> Iterator[Lab]:
    """Yield a lab, and remove it with all that builds left in it."""
    # pytest's own temporary directories are closed to other users
    path = Path(tempfile.mkdtemp(prefix="specgen-lab-"))
    try:
        path.chmod(0o755)
        (path / "builds").mkdir()
        if os.geteuid() == 0 and all(map(shutil.which, (RUNC.name, *USER_TOOLS))):
            _make_user()
            entry = pwd.getpwnam(USER)
            os.chown(path / "builds", entry.pw_uid, entry.pw_gid)
        yield Lab(path)
    finally:
        shutil.rmtree(path)


_AS_USER = """
import ctypes, os, pwd, sys
from specgen_client.cli import main  # while its files can be read
user = pwd.getpwnam(sys.argv.pop(1))
os.initgroups(user.pw_name, user.pw_gid)
os.setresgid(*[user.pw_gid] * 3)
os.setresuid(*[user.pw_uid] * 3)
ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: its /proc is its own, as after execve(2)
main()
"""


def specgen(mode: Mode, *words: str | Path, stdin: BuildRequest | None = None) -> Outcome:
    """Run the ``specgen`` command as the user of a mode."""
    command = tuple(map(str, words))
    data = b"" if stdin is None else stdin.SerializeToString()
    if mode is not Mode.UNPRIVILEGED:
        result = CliRunner().invoke(main, command, input=data, catch_exceptions=False)
        return Outcome(result.exit_code, result.output, command)
    done = subprocess.run(
        (sys.executable, "-c", _AS_USER, USER, *command),
        input=data,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=DEFAULT_TIMEOUT,
        cwd="/",
        check=False,
    )
    return Outcome(done.returncode, done.stdout.decode(), command)


def nodes(directory: Path) -> list[Node]:
    """Return the nodes of what is in a directory of inputs; their digests are made up."""
    digest = b"d" * 32
    return [
        Node(directory={"name": os.fsencode(entry.name), "digest": digest})
        if entry.is_dir()
        else Node(file={"name": os.fsencode(entry.name), "digest": digest})
        for entry in sorted(directory.iterdir(), key=lambda entry: os.fsencode(entry.name))
    ]


def script(text: str, **fields: Any) -> dict[str, Any]:
    """Return the fields of a request that runs a shell script, with tools in its PATH."""
    path = {"key": "PATH", "value": b"/nix/store/tools"}
    constraints = {"system": "x86_64-linux", "provide_bin_sh": True}
    return {
        "command_args": ["/bin/sh", "-e", "-c", text],
        "environment_vars": [path],
        "constraints": constraints | fields,
    }
