"""What ``specgen bundle`` says of builds that this machine, or its runtimes, will not do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runtimes import (
    EVERY_WAY,
    RUNC,
    Lab,
    Mode,
    Runtime,
    new_lab,
    nodes,
    require_runtime,
    run,
    script,
    specgen,
)
from support import build_request, require

from specgen_client import machine_checks
from specgen_client.host_rule import HostBuild
from specgen_client.machine_checks import RULES
from specgen_core import SpecOptions, read_request
from specgen_core.options import Resources
from specgen_core.spec import make_spec

every_way = pytest.mark.parametrize(("runtime", "mode"), EVERY_WAY)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with new_lab() as lab:
        yield lab


def found(code: str, options: SpecOptions | None = None, **fields: Any) -> list[dict[str, Any]]:
    """Return what the check of a code finds for a request with these fields."""
    request = read_request(build_request(inputs=[], **fields))
    build = HostBuild(
        request=request,
        spec=make_spec(request, options or SpecOptions(rootless=False)),
        bundle=Path("/nowhere"),
        inputs=None,
        copied=False,
    )
    [rule] = [rule for rule in RULES if rule.code == code]
    return list(rule.find(build))


def said_and_done(
    lab: Lab, runtime: Runtime, mode: Mode, *flags: str, **fields: Any
) -> tuple[str, int | None, str]:
    """Return what ``specgen bundle`` says, and how the runtime ends."""
    require_runtime(runtime, mode)
    request = build_request(inputs=nodes(lab.inputs()), **fields)
    bundle = lab.path / "builds" / "bundle"
    words = ("bundle", "-", bundle, "--format", "binary", "--inputs", lab.inputs(), "--no-terminal")
    rootful = ("--rootful",) if mode is Mode.ROOTFUL else ()
    shell = ("--sandbox-shell", lab.inputs() / "tools" / "busybox")
    done = specgen(mode, *words, *shell, *rootful, *flags, stdin=request)
    assert done.exit_code == 0, done.output
    outcome = run(runtime, mode, bundle)
    return done.output, outcome.exit_code, outcome.output


# --- the system -------------------------------------------------------------------------

OF_RISCV64 = bytes((*b"\x7fELF", 2, 1, 1)).ljust(16, b"\0") + bytes((2, 0, 243, 0, 1, 0, 0, 0))


@every_way
def test_a_system_that_is_not_the_hosts(runtime: Runtime, mode: Mode, lab: Lab) -> None:
    require(os.uname().machine == "x86_64", "x86_64")
    (lab.inputs() / "programs").mkdir()
    program = lab.inputs() / "programs" / "program"
    program.write_bytes(OF_RISCV64.ljust(256, b"\0"))
    program.chmod(0o755)
    said, exit_code, output = said_and_done(
        lab,
        runtime,
        mode,
        command_args=["/nix/store/programs/program"],
        constraints={"system": "riscv64-linux"},
    )
    assert "warning: the build is for riscv64-linux, and this host, x86_64, executes no" in said
    assert "[other-system]" in said
    assert exit_code != 0
    assert "exec format error" in output.lower()


REGISTERED = """
import os, runpy, subprocess, sys
register = "/proc/sys/fs/binfmt_misc/register"
subprocess.run(("mount", "-t", "binfmt_misc", "binfmt_misc", os.path.dirname(register)), check=True)
with open(register, "w") as file:
    file.write(r":specgen:M::\\x7fELF\\x02\\x01\\x01{zeros}\\x02\\x00\\xf3\\x00::/bin/true:")
from test_machine_checks import found
print(*(len(found("other-system", constraints={{"system": f"{{m}}-linux"}})) for m in sys.argv[1:]))
""".format(zeros=r"\\x00" * 9).replace("\\\\x", "\\x")


IN_A_NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")


def test_a_system_that_is_emulated() -> None:
    """In a user namespace of its own, which has a binfmt_misc of its own since Linux 6.7."""
    require(os.uname().machine == "x86_64", "x86_64")
    require(shutil.which("unshare"), "unshare")
    done = subprocess.run(
        (*IN_A_NAMESPACE, sys.executable, "-c", REGISTERED, "riscv64", "aarch64"),
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    require("CalledProcessError" not in done.stderr, "binfmt_misc in a user namespace")
    assert done.stdout == "0 1\n", done.stderr


@pytest.mark.parametrize(
    ("machine", "system", "is_found"),
    [
        pytest.param("x86_64", "x86_64-linux", False, id="own"),
        pytest.param("x86_64", "i686-linux", False, id="of_32_bits"),
        pytest.param("i686", "x86_64-linux", False, id="by_setarch"),
        pytest.param("aarch64", "armv7l-linux", False, id="arm_of_32_bits"),
        pytest.param("ppc64le", "powerpc64le-linux", False, id="other_names"),
        pytest.param("x86_64", "mips64el-linux", False, id="unknown"),
        pytest.param("sparc64", "x86_64-linux", False, id="of_an_unknown_host"),
        pytest.param("x86_64", "x86_64-darwin", False, id="said_by_a_diagnostic"),
        pytest.param("x86_64", "s390x-linux", True, id="another"),
    ],
)
def test_systems(
    machine: str, system: str, is_found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_checks, "_cannot_execute", lambda _: True)
    own = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*own[:4], machine)))
    expected = [{"system": system, "machine": machine}] if is_found else []
    assert found("other-system", constraints={"system": system}) == expected


# --- versions of runtimes ---------------------------------------------------------------


@every_way
def test_a_runtime_that_is_too_old_for_personality(runtime: Runtime, mode: Mode, lab: Lab) -> None:
    require(os.uname().machine == "x86_64", "x86_64")
    fields = script("uname -m", system="i686-linux")
    said, exit_code, output = said_and_done(lab, runtime, mode, "--personality", "system", **fields)
    assert exit_code == 0, output
    is_ignored = output.split()[-1] == "x86_64"
    assert (f"warning: {runtime} {runtime.version()} of this host ignores" in said) == is_ignored
    assert is_ignored or output.split()[-1] == "i686"


@pytest.mark.parametrize(
    ("runtime", "says", "version"),
    [
        pytest.param("runc", "runc version 1.1.5+ds1", "1.1.5+ds1", id="runc_1.1"),
        pytest.param("runc", "runc version 1.0.0-rc93", "1.0.0-rc93", id="runc_rc"),
        pytest.param("runc", "runc version 1.2.0-rc.1", "", id="runc_1.2"),
        pytest.param("runc", "runc version 1.10.0", "", id="runc_1.10"),
        pytest.param("runc", "runc version unknown", "", id="runc_unknown"),
        pytest.param("runc", "", "", id="runc_mute"),
        pytest.param("crun", "crun version 0.10.6", "0.10.6", id="crun_0.10"),
        pytest.param("crun", "crun version 1.8.1", "", id="crun_1.8"),
        pytest.param("crun", "crun version 0.11", "", id="crun_0.11"),
    ],
)
def test_versions_of_runtimes(
    runtime: str, says: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / runtime).write_text(f"#!/bin/sh\necho '{says}'\necho 'spec: 1.0.2-dev'\n")
    (tmp_path / runtime).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    fields = {"constraints": {"system": "i686-linux"}}
    asked = SpecOptions(rootless=False, personality="system")
    assert [f["version"] for f in found("personality-ignored", asked, **fields)] == (
        [version] if version else []
    )
    assert found("personality-ignored", **fields) == []


# --- cgroups ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "what", "words"),
    [
        pytest.param(("--memory", "1G"), "limits (memory)", "cannot set memory limit", id="memory"),
        pytest.param(("--cpus", "1.5"), "limits (cpu)", "cannot set cpu limit", id="cpu"),
        pytest.param(("--pids", "77"), "limits (pids)", "cannot set pids limit", id="pids"),
        pytest.param(
            ("--cgroups-path", "/specgen-test"),
            "the cgroup /specgen-test",
            "permission denied",
            id="path",
        ),
    ],
)
def test_limits_without_a_cgroup(flags: tuple[str, str], what: str, words: str, lab: Lab) -> None:
    said, exit_code, output = said_and_done(lab, RUNC, Mode.UNPRIVILEGED, *flags, **script("true"))
    assert f"warning: the spec has {what}, and this user may make no cgroup in" in said
    assert exit_code != 0
    assert said.partition(": runc fails (")[2].partition(")")[0] in output
    assert words in output or Path("/sys/fs/cgroup/cgroup.controllers").exists()


def test_nothing_is_said_of_limits_that_root_sets(lab: Lab) -> None:
    said, exit_code, output = said_and_done(
        lab, RUNC, Mode.USERNS, "--memory", "1G", "--pids", "77", **script("true")
    )
    assert exit_code == 0, output
    assert "[no-cgroup]" not in said


LIMITED = SpecOptions(rootless=False, resources=Resources(memory_bytes=2**30))


@pytest.mark.parametrize(
    ("unified", "own", "options", "closed"),
    [
        pytest.param(False, "/user", LIMITED, "memory/user", id="v1"),
        pytest.param(False, "/mine", LIMITED, None, id="v1_delegated"),
        pytest.param(False, "/gone/below", LIMITED, "memory", id="v1_not_seen"),
        pytest.param(True, "/user/session", LIMITED, "user", id="v2"),
        pytest.param(True, "/mine/session", LIMITED, None, id="v2_delegated"),
        pytest.param(True, "/mine", LIMITED, "", id="v2_itself_delegated"),
        pytest.param(True, "/mine/session", SpecOptions(rootless=False), None, id="no_limits"),
        *(
            pytest.param(True, "/mine/session", SpecOptions(rootless=False, cgroups_path=path), at)
            for path, at in (
                ("/builds", ""),
                ("/mine/b", None),
                ("b", None),
                ("user.slice:a:b", None),
            )
        ),
    ],
)
def test_where_a_cgroup_is_made(
    unified: bool,
    own: str,
    options: SpecOptions,
    closed: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    top = tmp_path if unified else tmp_path / "memory"
    for name in ("user", "mine"):
        (top / name / "session").mkdir(parents=True)
    if unified:
        (tmp_path / "cgroup.controllers").touch()
    file = tmp_path / "own"
    file.write_text(f"0::{own}\n" if unified else f"4:cpu,memory:{own}\n1:name=systemd:/x\n0::/y\n")
    monkeypatch.setattr(machine_checks, "_CGROUPS", tmp_path)
    monkeypatch.setattr(machine_checks, "_OWN_CGROUPS", file)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda path, *_, **__: "mine" in Path(path).parts)
    directories = [words["directory"] for words in found("no-cgroup", options)]
    assert directories == ([] if closed is None else [tmp_path / closed])
