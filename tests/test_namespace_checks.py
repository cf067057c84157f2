"""What ``specgen bundle`` says where a user namespace, or its ids, are not to be had."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from runtimes import (
    CRUN,
    EVERY_WAY,
    RUNC,
    SHELL,
    USER,
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
from support import build_request

from specgen_client import namespace_checks
from specgen_client.host_rule import HostBuild
from specgen_client.namespace_checks import RULES
from specgen_commands import host_ids
from specgen_commands.host_ids import ids_not_to_be_mapped
from specgen_core import IdMapping, SpecOptions, read_request
from specgen_core.spec import make_spec
from tvix.build.protos.build_pb2 import BuildRequest

on_both = pytest.mark.parametrize("runtime", [RUNC, CRUN], ids=str)
SOMEBODY = 4242


@pytest.fixture
def lab() -> Iterator[Lab]:
    with new_lab() as lab:
        yield lab


def requested(lab: Lab) -> BuildRequest:
    return build_request(inputs=nodes(lab.inputs()), **script("true"))


def words(lab: Lab, *flags: str) -> tuple[str | Path, ...]:
    """Return a command line of ``specgen``."""
    directory = lab.path / "builds" / "bundle"
    inputs = ("--inputs", lab.inputs(), "--sandbox-shell", SHELL, "--no-terminal")
    return ("bundle", "-", directory, "--format", "binary", *inputs, *flags)


def found(code: str, **options: Any) -> list[dict[str, Any]]:
    """Return what the check of a code finds."""
    request = read_request(build_request(inputs=[]))
    build = HostBuild(
        request=request,
        spec=make_spec(request, SpecOptions(**options)),
        bundle=Path("/nowhere"),
        inputs=None,
        copied=False,
    )
    [rule] = [rule for rule in RULES if rule.code == code]
    return list(rule.find(build))


@pytest.fixture
def as_somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY)
    monkeypatch.setattr(os, "getegid", lambda: SOMEBODY)


# --- user namespaces --------------------------------------------------------------------

FORBIDDEN = """
import os, subprocess, sys
wait = 'read -r _; exec sh -c "$0" "$@"'  # it has capabilities by execve(2) as root
forbid = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@" < "$0"'
command = ("unshare", "--user", "sh", "-c", wait, forbid, *sys.argv[1:])
with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
    while os.readlink(f"/proc/{child.pid}/ns/user") == os.readlink("/proc/self/ns/user"):
        pass
    for ids in ("uid_map", "gid_map"):
        with open(f"/proc/{child.pid}/{ids}", "w") as file:
            file.write("0 0 4294967295")
    child.communicate(b"\\n")
sys.exit(child.returncode)
"""
"""Executes a command as root in a namespace that has all ids, and lets nobody make another one."""


@on_both
def test_user_namespaces_are_forbidden(runtime: Runtime, lab: Lab) -> None:
    require_runtime(runtime, Mode.USERNS)
    request = lab.path / "request"
    request.write_bytes(requested(lab).SerializeToString())
    specgen_command = Path(sys.executable).with_name("specgen")
    by = (sys.executable, "-c", FORBIDDEN)
    done = subprocess.run(
        (*by, request, specgen_command, *words(lab)), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = "user.max_user_namespaces = 0 lets nobody make a user namespace"
    assert f"specgen: warning: {said}" in done.stderr
    outcome = run(runtime, Mode.USERNS, lab.path / "builds/bundle", by=(*by, os.devnull))
    assert outcome.exit_code != 0
    assert "no space left on device" in outcome.output.lower()


def settings(directory: Path, **values: str) -> Path:
    for name, value in values.items():
        path = directory / "sys" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return directory / "sys"


@pytest.mark.parametrize(
    ("values", "for_root", "for_somebody"),
    [
        pytest.param({"user__max_user_namespaces": "0"}, ["nobody"], ["nobody"], id="no_more"),
        pytest.param({"user__max_user_namespaces": "10"}, [], [], id="some_more"),
        pytest.param({"kernel__unprivileged_userns_clone": "0"}, [], ["only root"], id="users"),
        pytest.param({"kernel__unprivileged_userns_clone": "1"}, [], [], id="all_users"),
        pytest.param({}, [], [], id="no_such_settings"),
    ],
)
def test_settings_that_forbid_user_namespaces(
    values: dict[str, str],
    for_root: list[str],
    for_somebody: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(namespace_checks, "_SYSCTLS", settings(tmp_path, **values))
    for uid, expected in ((0, for_root), (SOMEBODY, for_somebody)):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        assert [f["whom"] for f in found("no-user-namespaces")] == expected
        assert found("no-user-namespaces", rootless=False) == []


@pytest.mark.parametrize(
    ("restricted", "profile", "expected"),
    [
        pytest.param("1", "/usr/bin/brave flags=(unconfined) {\n  userns,\n}\n", True, id="others"),
        pytest.param("1", "/usr/sbin/runc flags=(unconfined) {\n  userns,\n}\n", False, id="own"),
        pytest.param("0", "", False, id="not_restricted"),
        pytest.param(None, "", False, id="no_apparmor"),
    ],
)
def test_apparmor_restricts_user_namespaces(
    restricted: str | None,
    profile: str,
    expected: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    as_somebody: None,
) -> None:
    values = {"kernel__apparmor_restrict_unprivileged_userns": restricted} if restricted else {}
    profiles = tmp_path / "apparmor.d"
    (profiles / "abstractions").mkdir(parents=True)
    (profiles / "a.profile").write_text(profile)
    (tmp_path / "runc").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(namespace_checks, "_SYSCTLS", settings(tmp_path, **values))
    monkeypatch.setattr(namespace_checks, "_PROFILES", profiles)
    assert [f["runtimes"] for f in found("no-apparmor-profile")] == ["runc"] * expected
    assert found("no-apparmor-profile", rootless=False) == []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert found("no-apparmor-profile") == []


# --- ids --------------------------------------------------------------------------------


@on_both
def test_ids_that_are_not_ones_own(runtime: Runtime, lab: Lab) -> None:
    require_runtime(runtime, Mode.UNPRIVILEGED)
    user = pwd.getpwnam(USER)
    flags = ("--uid-mapping", f"0:{user.pw_uid}:1", "--uid-mapping", "1000:2130700000:1")
    flags += ("--gid-mapping", f"0:{user.pw_gid}:1", "--gid-mapping", "100:2130700000:1")
    done = specgen(Mode.UNPRIVILEGED, *words(lab, *flags), stdin=requested(lab))
    assert done.exit_code == 0, done.output
    for kind in ("uid", "gid"):
        said = f"{kind}s 2130700000-2130700000 of this host may not be mapped by this user, see"
        assert f"warning: {said} /etc/sub{kind}: runc and crun fail" in done.output
    outcome = run(runtime, Mode.UNPRIVILEGED, lab.path / "builds/bundle")
    assert outcome.exit_code != 0
    assert "not allowed" in outcome.output


@pytest.mark.parametrize(("runtime", "mode"), EVERY_WAY)
def test_nothing_is_said_of_ids_that_are(runtime: Runtime, mode: Mode, lab: Lab) -> None:
    require_runtime(runtime, mode)
    flags = ("--rootful",) if mode is Mode.ROOTFUL else ()
    done = specgen(mode, *words(lab, *flags), stdin=requested(lab))
    assert done.exit_code == 0, done.output
    for rule in RULES:
        assert f"[{rule.code}]" not in done.output
    assert run(runtime, mode, lab.path / "builds/bundle").exit_code == 0


OWN_IDS = "somebody:100000:10\n4242:100010:10\nother:200000:10\n"


@pytest.mark.parametrize(
    ("uid", "ids", "nsswitch", "expected"),
    [
        pytest.param(SOMEBODY, [(0, SOMEBODY, 1), (1000, 100_000, 20)], "", "", id="own"),
        pytest.param(SOMEBODY, [(0, SOMEBODY, 2)], "", "4243-4243", id="beside_ones_own"),
        pytest.param(SOMEBODY, [(0, 100_015, 10)], "", "100020-100024", id="beyond_ones_own"),
        pytest.param(SOMEBODY, [(0, 200_000, 1)], "", "200000-200000", id="anothers"),
        pytest.param(SOMEBODY, [(0, 0, 1)], "", "0-0", id="root"),
        pytest.param(SOMEBODY, [(0, 0, 1)], "subid: sss\n", "", id="by_another_source"),
        pytest.param(SOMEBODY, [(0, 0, 1)], "subid: files\n", "0-0", id="by_these_files"),
        pytest.param(0, [(0, 0, 100_000)], "", "", id="roots"),
        pytest.param(0, [(0, 300_000, 2)], "", "300000-300001", id="roots_in_a_container"),
    ],
)
def test_ids_that_may_be_mapped(
    uid: int,
    ids: list[tuple[int, int, int]],
    nsswitch: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, text in (("sub", OWN_IDS), ("map", "0 0 300000\n"), ("nsswitch.conf", nsswitch)):
        (tmp_path / name).write_text(text)
    sub = tmp_path / "sub"
    of_these_files = partial(ids_not_to_be_mapped, subuid=sub, subgid=sub)
    monkeypatch.setattr(namespace_checks, "ids_not_to_be_mapped", of_these_files)
    monkeypatch.setattr(host_ids, "_UID_MAP", tmp_path / "map")
    monkeypatch.setattr(host_ids, "_GID_MAP", tmp_path / "map")
    monkeypatch.setattr(host_ids, "_user_name", lambda: "somebody")
    monkeypatch.setattr(namespace_checks, "_NSSWITCH", tmp_path / "nsswitch.conf")
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(os, "getegid", lambda: uid)
    mappings = tuple(IdMapping(*numbers) for numbers in ids)
    findings = found("ids-not-ones-own", uid_mappings=mappings, gid_mappings=mappings)
    assert [(f["kind"], f["ids"]) for f in findings] == (
        [("uid", expected), ("gid", expected)] if expected else []
    )
    assert found("ids-not-ones-own", rootless=False) == []


@on_both
@pytest.mark.parametrize(
    ("mode", "why"),
    [
        pytest.param(None, "is not in PATH", id="missing"),
        pytest.param(0o755, "is not setuid root", id="not_setuid"),
        pytest.param(0o4755, "", id="setuid"),
    ],
)
def test_no_mapping_tool(
    runtime: Runtime, mode: int | None, why: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_runtime(runtime, Mode.UNPRIVILEGED)
    tools = ("newuidmap", "newgidmap")
    path = lab.path / "bin"
    path.mkdir()
    for directory in os.get_exec_path():
        for program in Path(directory).glob("*"):
            place = path / program.name
            if program.name not in tools and not place.is_symlink():
                place.symlink_to(program)
    for tool in tools if mode else ():
        shutil.copy(shutil.which(tool) or "", path)
        (path / tool).chmod(mode or 0)
    monkeypatch.setenv("PATH", str(path))
    done = specgen(Mode.UNPRIVILEGED, *words(lab), stdin=requested(lab))
    assert done.exit_code == 0, done.output
    for tool in tools:
        assert (f"warning: {tool} {why}" in done.output) == bool(why)
    outcome = run(runtime, Mode.UNPRIVILEGED, lab.path / "builds/bundle")
    assert (outcome.exit_code != 0) == bool(why), outcome.output
    output = outcome.output.lower()
    assert not why or "operation not permitted" in output or "invalid argument" in output
