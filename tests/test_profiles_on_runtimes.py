"""What builds see of profiles and options, on real runtimes: the tables of docs/profiles.md."""

from __future__ import annotations

import json
import os
import platform
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from runtimes import CRUN, EVERY_WAY, RUNC, Lab, Mode, Runtime, new_lab, nodes, require_runtime, run
from support import build_request, require, rows_below

from specgen_core.profiles import PROFILE_NAMES

PAGE = Path(__file__).parent.parent / "docs" / "profiles.md"
PYTHON = "/usr/bin/python3"
FUSE = os.makedev(10, 229)
CGROUP = f"/specgen-test-{os.getpid()}"  # one level: runc removes that, and none above it
PROFILED = (
    *("--nofile", "--drop-capabilities", "--tmp-mode", "--device", "--device-rules", "--memory"),
    *("--cpus", "--pids", "--cgroups-path", "--seccomp", "--personality"),
)
IDS = ("0:2130700000:1", "1000:2130700001:1"), ("0:2130700000:1", "100:2130700001:1")

Seen: TypeAlias = Callable[..., Any]
"""Of a runtime, a mode and flags: what a build saw, or the words of a runtime that fails."""

PROBE = """
import json, os, resource, sys

def tried(what):
    try:
        what()
    except OSError as error:
        return os.strerror(error.errno)
    return "yes"

def reads_closed():
    with open("closed", "w"):
        os.chmod("closed", 0)
    open("closed").close()

def makes_setuid():
    os.close(os.open("setuid", os.O_CREAT, 0o4755))
    return "yes" if os.stat("setuid").st_mode & 0o4000 else "no"

def read(name):
    try:
        with open("/sys/fs/cgroup/" + name) as file:
            return file.read().strip()
    except OSError:
        return ""

def limit(given, *names):  # of cgroup v1, one file for each value; of v2
    *v1, v2 = names
    return "as given" if given in (" ".join(map(read, v1)), read(v2)) else "none"

def own_cgroups():
    with open("/proc/self/cgroup") as file:
        return {line.strip().split(":")[2] for line in file}

def status(name):
    with open("/proc/self/status") as file:
        return next(line.split()[1] for line in file if line.startswith(name + ":"))

open("file", "w").close()
files = "{}:{}".format(*resource.getrlimit(resource.RLIMIT_NOFILE))
json.dump({
    "capabilities": "none" if int(status("CapEff"), 16) == 0 else "some",
    "reads a file of mode 000": tried(reads_closed),
    "sets the setuid bit": tried(lambda: os.chmod("file", 0o4755)),
    "makes a file with the setuid bit": makes_setuid(),
    "sets the setgid bit": tried(lambda: os.chmod("file", 0o2755)),
    "sets an attribute": tried(lambda: os.setxattr("file", "user.a", b"value")),
    "makes a file in /tmp": tried(lambda: open("/tmp/file", "w").close()),
    "open files": files if files in ("1024:1024", "512:1000") else "as the runtime",
    "opens its device": tried(lambda: os.close(os.open(sys.argv[1], os.O_RDWR))),
    "`uname -m`": os.uname().machine,
    "limit of memory": limit("1073741824", "memory/memory.limit_in_bytes", "memory.max"),
    "limit of processes": limit("77", "pids/pids.max", "pids.max"),
    "limit of CPUs": limit(
        "150000 100000", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us", "cpu.max"
    ),
    "its cgroup": "as given" if sys.argv[2] in own_cgroups() else "the runtime's choice",
}, sys.stdout)
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with new_lab() as lab:
        (lab.inputs() / "probe.py").write_text(PROBE)
        yield lab


@pytest.fixture(scope="module")
def device() -> Iterator[Path]:
    """Return a device node that anybody may open, as udev makes /dev/fuse."""
    require_runtime(RUNC, Mode.ROOTFUL)
    path = Path(f"/dev/specgen-test-{os.getpid()}")
    os.mknod(path, stat.S_IFCHR, FUSE)
    try:
        path.chmod(0o666)
        yield path
    finally:
        path.unlink()


@pytest.fixture
def seen(lab: Lab, device: Path, request: pytest.FixtureRequest) -> Seen:
    """Return what runs the probe in one way, and answers what it saw."""
    require(os.access(PYTHON, os.X_OK) and platform.machine() == "x86_64", f"{PYTHON}, x86_64")
    ro_paths = [str(device), "/lib", "/lib64", "/usr"]
    build = build_request(
        command_args=[PYTHON, "/nix/store/probe.py", str(device), CGROUP],
        inputs=nodes(lab.inputs()),
        constraints={"system": "i686-linux", "available_ro_paths": ro_paths},
    )

    def see(runtime: Runtime, mode: Mode, *flags: str) -> Any:
        require_runtime(runtime, mode)
        if mode is Mode.USERNS:
            for flag, mappings in zip(("--uid-mapping", "--gid-mapping"), IDS):
                flags += tuple(word for mapping in mappings for word in (flag, mapping))
        name = re.sub(r"\W+", "-", request.node.name)
        inputs = ("--inputs", lab.inputs(), "--no-terminal")
        outcome = run(runtime, mode, lab.bundle(mode, build, *inputs, *flags, name=name))
        if outcome.exit_code:
            return outcome.output
        return json.loads(outcome.output.splitlines()[-1])

    return see


def column(runtime: Runtime, mode: Mode) -> int:
    """Return which of a row's last six cells is that of a way to run."""
    return (RUNC, CRUN).index(runtime) * len(Mode) + [*Mode].index(mode) - len(EVERY_WAY)


@pytest.mark.parametrize("profile", PROFILE_NAMES)
@pytest.mark.parametrize(("runtime", "mode"), EVERY_WAY)
def test_what_a_build_sees(
    runtime: Runtime, mode: Mode, profile: str, device: Path, seen: Seen
) -> None:
    flags = ["--profile", profile]
    if mode is not Mode.UNPRIVILEGED:  # runc fails: its user has no cgroup to limit
        flags += ["--memory", "1G", "--pids", "77"]
    if profile == "nix":
        flags += ["--device", f"{device}:c:10:229:rw"]

    found = seen(runtime, mode, *flags)

    rows = [row for row in rows_below(PAGE, "What a build sees") if row[1] == f"`{profile}`"]
    assert len(rows) == 11
    at = column(runtime, mode)
    assert {what: found[what] for what, *_ in rows} == {what: cells[at] for what, *cells in rows}


ALONE = rows_below(PAGE, "Each option alone")


def test_each_option_has_its_row() -> None:
    flags = {word for row in ALONE for word in row[0].strip("`").split() if word.startswith("--")}

    assert flags == set(PROFILED) | {"--no-cgroup-namespace"}


@pytest.mark.parametrize(("runtime", "mode"), EVERY_WAY)
def test_without_options_there_are_no_limits(runtime: Runtime, mode: Mode, seen: Seen) -> None:
    found = seen(runtime, mode, "--no-cgroup-namespace")

    limits = {what: value for what, value in found.items() if what.startswith("limit of ")}
    assert limits == dict.fromkeys(
        ("limit of memory", "limit of processes", "limit of CPUs"), "none"
    )
    assert found["its cgroup"] == "the runtime's choice"


@pytest.mark.parametrize("row", [pytest.param(row, id=f"{row[0]} {row[1]}") for row in ALONE])
@pytest.mark.parametrize(("runtime", "mode"), EVERY_WAY)
def test_what_an_option_changes(
    runtime: Runtime, mode: Mode, row: list[str], device: Path, seen: Seen
) -> None:
    flags = row[0].strip("`").replace("DEVICE", f"{device}:c:10:229:rw").replace("CGROUP", CGROUP)

    found = seen(runtime, mode, *flags.split())

    cell = row[column(runtime, mode)]
    if isinstance(found, str):
        assert cell.startswith("`") and cell.strip("`") in found
    else:
        assert found[row[1]] == cell
