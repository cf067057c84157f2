"""What a build sees of each profile, on real runtimes: the tables of docs/profiles.md."""

from __future__ import annotations

import json
import os
import platform
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runtimes import CRUN, EVERY_WAY, RUNC, Lab, Mode, Runtime, new_lab, nodes, require_runtime, run
from support import build_request, require, rows_below

from specgen_core.profiles import PROFILE_NAMES

PAGE = Path(__file__).parent.parent / "docs" / "profiles.md"
PYTHON = "/usr/bin/python3"
FUSE = os.makedev(10, 229)
IDS = ("0:2130700000:1", "1000:2130700001:1"), ("0:2130700000:1", "100:2130700001:1")

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

def limit(given, *names):
    for name in names:
        try:
            with open("/sys/fs/cgroup/" + name) as file:
                return "as given" if file.read().strip() == given else "none"
        except OSError:
            pass
    return "none"

def status(name):
    with open("/proc/self/status") as file:
        return next(line.split()[1] for line in file if line.startswith(name + ":"))

open("file", "w").close()
files = "{}:{}".format(*resource.getrlimit(resource.RLIMIT_NOFILE))
json.dump({
    "capabilities": "none" if int(status("CapEff"), 16) == 0 else "some",
    "reads a file of mode 000": tried(reads_closed),
    "sets the setuid bit": tried(lambda: os.chmod("file", 0o4755)),
    "sets the setgid bit": tried(lambda: os.chmod("file", 0o2755)),
    "sets an attribute": tried(lambda: os.setxattr("file", "user.a", b"value")),
    "makes a file in /tmp": tried(lambda: open("/tmp/file", "w").close()),
    "open files": "1024:1024" if files == "1024:1024" else "as the runtime",
    "opens its device": tried(lambda: os.close(os.open(sys.argv[1], os.O_RDWR))),
    "`uname -m`": os.uname().machine,
    "limit of memory": limit("1073741824", "memory/memory.limit_in_bytes", "memory.max"),
    "limit of processes": limit("77", "pids/pids.max", "pids.max"),
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


def documented() -> dict[tuple[str, str], list[str]]:
    """Return the table's cells, by what is seen and the profile."""
    return {(row[0], row[1].strip("`")): row[2:] for row in rows_below(PAGE, "What a build sees")}


@pytest.mark.parametrize("profile", PROFILE_NAMES)
@pytest.mark.parametrize(("runtime", "mode"), EVERY_WAY)
def test_what_a_build_sees(
    runtime: Runtime, mode: Mode, profile: str, lab: Lab, device: Path
) -> None:
    require_runtime(runtime, mode)
    require(os.access(PYTHON, os.X_OK) and platform.machine() == "x86_64", f"{PYTHON}, x86_64")
    ro_paths = [str(device), "/lib", "/lib64", "/usr"]
    request = build_request(
        command_args=[PYTHON, "/nix/store/probe.py", str(device)],
        inputs=nodes(lab.inputs()),
        constraints={"system": "i686-linux", "available_ro_paths": ro_paths},
    )
    flags = ["--no-terminal", "--profile", profile]
    if mode is not Mode.UNPRIVILEGED:  # runc fails: its user has no cgroup to limit
        flags += ["--memory", "1G", "--pids", "77"]
    if profile == "nix":
        flags += ["--device", f"{device}:c:10:229:rw"]
    if mode is Mode.USERNS:
        for flag, mappings in zip(("--uid-mapping", "--gid-mapping"), IDS):
            flags += [word for mapping in mappings for word in (flag, mapping)]
    name = f"{runtime}-{mode.name}-{profile}"
    bundle = lab.bundle(mode, request, "--inputs", lab.inputs(), *flags, name=name)

    outcome = run(runtime, mode, bundle)

    assert outcome.exit_code == 0, outcome.output
    seen: dict[str, Any] = json.loads(outcome.output.splitlines()[-1])
    at = (RUNC, CRUN).index(runtime) * len(Mode) + [*Mode].index(mode)
    expected = {what: cells[at] for (what, of), cells in documented().items() if of == profile}
    assert seen == expected
