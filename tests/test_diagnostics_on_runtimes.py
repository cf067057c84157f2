"""Each diagnostic again, on real runtimes: what happens is what its sentence says.

The exception is mount-over-root, which may damage the host; docs/diagnostics.md has its
source. Most run as root, with a rootful spec or with a user namespace, where the mode makes
no difference to what is shown.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runtimes import (
    CRUN,
    RUNC,
    SHELL,
    Lab,
    Mode,
    Outcome,
    Runtime,
    new_lab,
    nodes,
    require_runtime,
    run,
    script,
    specgen,
)
from support import build_request, require

from specgen_core import Resources, SpecOptions, scratch_path
from specgen_core.answer import generate
from tvix.build.protos.build_pb2 import BuildRequest

ROOTFUL, USERNS, UNPRIVILEGED = Mode.ROOTFUL, Mode.USERNS, Mode.UNPRIVILEGED

on_both = pytest.mark.parametrize("runtime", [RUNC, CRUN], ids=str)


@pytest.fixture
def lab() -> Iterator[Lab]:
    require_runtime(RUNC, ROOTFUL)
    require_runtime(CRUN, ROOTFUL)
    with new_lab() as lab:
        lab.inputs(file="a file\n", dir={"in": "in it\n"})
        yield lab


def request_of(lab: Lab, text: str = "true", **fields: Any) -> BuildRequest:
    """Return a request that runs a shell script, with these fields in the place of its own."""
    constraints = fields.pop("constraints", {})
    plain = script(text, **constraints) | {"inputs": nodes(lab.path / "inputs")}
    return build_request(**(plain | fields))


def diagnosed(request: BuildRequest, **options: Any) -> list[tuple[str, str]]:
    """Return codes and fields for a request whose options have nothing to say."""
    options = {"rootless": False, "terminal": False} | options
    found = generate(request, SpecOptions(**options)).diagnostics
    return [(one.code, one.field) for one in found]


def build(
    lab: Lab, runtime: Runtime, mode: Mode, request: BuildRequest, *flags: str | Path
) -> Outcome:
    bundle = lab.bundle(mode, request, "--inputs", lab.path / "inputs", "--force", *flags)
    return run(runtime, mode, bundle)


def build_by_hand(lab: Lab, runtime: Runtime, mode: Mode, request: BuildRequest) -> Outcome:
    """Build what the bundle writer refuses: lay the spec into another request's bundle."""
    bundle = lab.bundle(mode, request_of(lab), "--inputs", lab.path / "inputs", "--force")
    config = bundle / "config.json"
    answer = generate(
        request, SpecOptions(rootless=mode is not ROOTFUL, terminal=False, sandbox_shell=SHELL)
    )
    spec = json.loads(answer.json)
    spec["linux"] = json.loads(config.read_text())["linux"]
    config.write_text(json.dumps(spec))
    for scratch in answer.scratch_dirs:
        (bundle / scratch.bundle_path).mkdir(exist_ok=True)
        os.chown(bundle / scratch.bundle_path, 1000, 100)
    return run(runtime, mode, bundle)


def fails(outcome: Outcome, *texts: str) -> None:
    assert outcome.exit_code != 0
    for text in texts:
        assert text.lower() in outcome.output.lower()


def runs(outcome: Outcome) -> None:
    assert outcome.exit_code == 0, outcome.output


# --- options --------------------------------------------------------------------------

UIDS = ("--uid-mapping", "0:0:1", "--uid-mapping", "1000:1000:1")
GIDS = ("--gid-mapping", "0:0:1", "--gid-mapping", "100:100:1")


@on_both
@pytest.mark.parametrize(
    ("flags", "runc", "crun"),
    [
        pytest.param(
            ("--id-mappings", "none"),
            "User namespaces enabled, but no uid mappings found",
            "cannot setresgid to 100",
            id="none",
        ),
        pytest.param(
            UIDS,
            "User namespaces enabled, but no gid mappings found",
            "cannot setresgid to 100",
            id="uids_only",
        ),
        pytest.param(
            GIDS,
            "User namespaces enabled, but no uid mappings found",
            "cannot setresuid to 1000",
            id="gids_only",
        ),
    ],
)
def test_no_id_mappings(
    runtime: Runtime, flags: tuple[str, ...], runc: str, crun: str, lab: Lab
) -> None:
    fails(build(lab, runtime, USERNS, request_of(lab), *flags), runc if runtime is RUNC else crun)


@on_both
def test_root_uid_not_mapped(runtime: Runtime, lab: Lab) -> None:
    flags = ("--uid-mapping", "1000:1000:1", *GIDS)
    outcome = build(lab, runtime, USERNS, request_of(lab), *flags)
    if runtime is RUNC:
        fails(outcome, "User namespaces enabled, but no user mapping found")
    else:
        runs(outcome)  # all mount points are there
        make_one = request_of(lab, additional_files=[], scratch_paths=["build", "nix/store"])
        bundle = lab.bundle(USERNS, make_one, "--inputs", lab.path / "inputs", "--force", *flags)
        (bundle / "root/proc").rmdir()
        fails(run(runtime, USERNS, bundle), "cannot mkdir `proc`: Permission denied")


@on_both
def test_root_gid_not_mapped(runtime: Runtime, lab: Lab) -> None:
    outcome = build(lab, runtime, USERNS, request_of(lab), *UIDS, "--gid-mapping", "100:100:1")
    if runtime is RUNC:
        fails(outcome, "User namespaces enabled, but no group mapping found")
    else:
        runs(outcome)


@on_both
def test_build_user_not_mapped(runtime: Runtime, lab: Lab) -> None:
    outcome = build(lab, runtime, USERNS, request_of(lab), "--uid-mapping", "0:0:1", *GIDS)
    expected = {
        RUNC: "cannot set uid to unmapped user in user namespace",
        CRUN: "cannot setresuid to 1000",
    }
    fails(outcome, expected[runtime])


@on_both
def test_build_group_not_mapped(runtime: Runtime, lab: Lab) -> None:
    outcome = build(lab, runtime, USERNS, request_of(lab), *UIDS, "--gid-mapping", "0:0:1")
    expected = {
        RUNC: "cannot set gid to unmapped user in user namespace",
        CRUN: "cannot setresgid to 100",
    }
    fails(outcome, expected[runtime])


@on_both
@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.name.lower())
def test_needs_terminal(runtime: Runtime, mode: Mode, lab: Lab) -> None:
    require_runtime(runtime, mode)
    expected = {
        RUNC: "open /dev/tty: no such device or address",
        CRUN: "tcgetattr: Inappropriate ioctl for device",
    }
    fails(build(lab, runtime, mode, request_of(lab), "--terminal"), expected[runtime])


# --- the command ----------------------------------------------------------------------

LONGEST = 128 * 1024 - 1
"""Bytes, without the NUL."""


@on_both
def test_argument_too_long(runtime: Runtime, lab: Lab) -> None:
    def with_argument(length: int) -> BuildRequest:
        return request_of(lab, command_args=["/bin/sh", "-c", "true", "x" * length])

    assert diagnosed(with_argument(LONGEST)) == []
    runs(build(lab, runtime, ROOTFUL, with_argument(LONGEST)))
    assert diagnosed(with_argument(LONGEST + 1)) == [("argument-too-long", "command_args[3]")]
    fails(build(lab, runtime, ROOTFUL, with_argument(LONGEST + 1)), "argument list too long")


@on_both
def test_variable_too_long(runtime: Runtime, lab: Lab) -> None:
    def with_variable(length: int) -> BuildRequest:
        value = b"x" * (length - len("KEY="))
        return request_of(lab, environment_vars=[{"key": "KEY", "value": value}])

    assert diagnosed(with_variable(LONGEST)) == []
    runs(build(lab, runtime, ROOTFUL, with_variable(LONGEST)))
    too_long = [("argument-too-long", "environment_vars[0].value")]
    assert diagnosed(with_variable(LONGEST + 1)) == too_long
    fails(build(lab, runtime, ROOTFUL, with_variable(LONGEST + 1)), "argument list too long")


@on_both
def test_arguments_too_long(runtime: Runtime, lab: Lab) -> None:
    """Exact to the byte, with the usual stack limit and a HOME in the environment."""

    def taking(total: int) -> BuildRequest:
        def cost(string: str) -> int:
            return len(string) + 1 + 8

        args = ["/bin/sh", "-c", "true"]
        rest = total - len("/bin/sh") - 1 - cost("HOME=/") - sum(map(cost, args))
        while rest > 100_000:
            args.append("x" * (50_000 - 9))
            rest -= 50_000
        args.append("x" * (rest - 9))
        home = [{"key": "HOME", "value": b"/"}]
        return request_of(lab, command_args=args, environment_vars=home)

    most = 2 * 1024 * 1024
    assert diagnosed(taking(most)) == []
    runs(build(lab, runtime, ROOTFUL, taking(most)))
    assert diagnosed(taking(most + 1)) == [("arguments-too-long", "command_args")]
    fails(build(lab, runtime, ROOTFUL, taking(most + 1)), "argument list too long")


@on_both
def test_command_without_path(runtime: Runtime, lab: Lab) -> None:
    request = request_of(lab, command_args=["sh", "-c", "true"], environment_vars=[])
    assert diagnosed(request) == [("command-without-path", "command_args[0]")]
    fails(build(lab, runtime, ROOTFUL, request), "not found in $PATH")

    with_path = request_of(
        lab, command_args=["sh", "-c", "true"], environment_vars=[{"key": "PATH", "value": b"/bin"}]
    )
    assert diagnosed(with_path) == []
    runs(build(lab, runtime, ROOTFUL, with_path))


def env(**variables: str) -> list[dict[str, Any]]:
    return [{"key": key, "value": value.encode()} for key, value in sorted(variables.items())]


@on_both
@pytest.mark.parametrize(
    ("command", "runc", "crun"),
    [
        pytest.param("", "executable file not found in $PATH", "not permitted", id="empty"),
        pytest.param("builtin:fetchurl", "not found in $PATH", "not found in $PATH", id="builtin"),
        pytest.param("/usr/bin/env", "no such file", "No such file", id="nowhere"),
        pytest.param("/nix/store/x/bin/x", "no such file", "No such file", id="missing_input"),
        pytest.param("/nix/store/dir", "permission denied", "not permitted", id="directory"),
        pytest.param("/nix/store/file", "permission denied", "Permission denied", id="plain_file"),
        pytest.param("/nix/store/file/x", "not a directory", "Not a directory", id="in_file"),
        pytest.param("./configure", "no such file", "No such file", id="relative"),
        pytest.param("/build/added", "permission denied", "Permission denied", id="added_file"),
    ],
)
def test_unusable_command(runtime: Runtime, command: str, runc: str, crun: str, lab: Lab) -> None:
    added = [{"path": "build/added", "contents": b"#!/bin/sh\n"}]
    request = request_of(lab, command_args=[command], additional_files=added)
    assert diagnosed(request) == [("unusable-command", "command_args[0]")]
    fails(build(lab, runtime, ROOTFUL, request), runc if runtime is RUNC else crun)


@on_both
def test_a_shell_that_was_not_asked_for(runtime: Runtime, lab: Lab) -> None:
    request = request_of(lab, constraints={"provide_bin_sh": False})
    assert diagnosed(request) == [("unusable-command", "command_args[0]")]
    fails(build(lab, runtime, ROOTFUL, request), "no such file or directory")


@on_both
@pytest.mark.parametrize(
    "path", [pytest.param("/usr/bin:/opt", id="elsewhere"), pytest.param("", id="empty")]
)
def test_command_that_path_does_not_lead_to(runtime: Runtime, path: str, lab: Lab) -> None:
    request = request_of(lab, command_args=["sh"], environment_vars=env(PATH=path))
    assert diagnosed(request) == [("unusable-command", "command_args[0]")]
    fails(build(lab, runtime, ROOTFUL, request), "not found in $PATH")


@on_both
def test_read_only_working_dir(runtime: Runtime, lab: Lab) -> None:
    in_root = request_of(lab, "echo > f", working_dir="opt")
    assert diagnosed(in_root) == [("read-only-working-dir", "working_dir")]
    fails(build(lab, runtime, ROOTFUL, in_root), "Read-only file system")

    in_input = request_of(lab, working_dir="nix/store/dir/new")
    assert diagnosed(in_input) == [("read-only-working-dir", "working_dir")]
    outcome = build(lab, runtime, ROOTFUL, in_input)
    fails(outcome, "read-only file system") if runtime is RUNC else runs(outcome)
    assert (lab.path / "inputs" / "dir" / "new").is_dir() is (runtime is CRUN)


@on_both
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        pytest.param({"working_dir": "tmp"}, "working_dir", id="working_dir"),
        pytest.param(
            {"environment_vars": env(TMPDIR="/tmp")}, "environment_vars[0].value", id="tmpdir"
        ),
    ],
)
def test_unwritable_tmp(runtime: Runtime, fields: dict[str, Any], field: str, lab: Lab) -> None:
    request = request_of(lab, "echo > ${TMPDIR:-.}/f", **fields)
    assert diagnosed(request) == [("unwritable-tmp", field)]
    fails(build(lab, runtime, ROOTFUL, request), "Permission denied")
    assert diagnosed(request, tmp_mode="1777") == []
    runs(build(lab, runtime, ROOTFUL, request, "--tmp-mode", "1777"))


@on_both
@pytest.mark.parametrize("system", ["aarch64-darwin", "builtin", "x86_64 linux"])
def test_foreign_system(runtime: Runtime, system: str, lab: Lab) -> None:
    """The runtimes look at no system: a build for another would run here, as if for this one."""
    request = request_of(lab, constraints={"system": system})
    assert diagnosed(request) == [("foreign-system", "constraints.system")]
    runs(build(lab, runtime, ROOTFUL, request))


@on_both
def test_needs_personality(runtime: Runtime, lab: Lab) -> None:
    require(os.uname().machine == "x86_64", "a host that runs i686")
    constraints = {"system": "i686-linux"}
    request = request_of(lab, 'test "$(uname -m)" = x86_64', constraints=constraints)
    assert diagnosed(request) == [("needs-personality", "constraints.system")]
    runs(build(lab, runtime, ROOTFUL, request))


def test_device_without_rule(lab: Lab) -> None:
    """On runc: crun makes no cgroup where these tests run it.

    With root mapped to itself, so that the mode of the device is no hindrance.
    """
    fuse = "/dev/fuse"
    require(Path(fuse).is_char_device(), fuse)
    request = request_of(lab, f"exec 3<>{fuse}", constraints={"available_ro_paths": [fuse]})
    field = "constraints.available_ro_paths[0]"
    assert diagnosed(request) == [("device-without-rule", field)]
    fails(build(lab, RUNC, USERNS, request, *UIDS, *GIDS), "Operation not permitted")
    assert diagnosed(request, devices=(fuse,)) == []
    runs(build(lab, RUNC, USERNS, request, *UIDS, *GIDS, "--device", fuse))


def test_tiny_memory_limit(lab: Lab) -> None:
    """On runc: crun makes no cgroup where these tests run it."""
    request = request_of(lab)
    found = [("tiny-memory-limit", "options.resources.memory_bytes")]
    assert diagnosed(request, resources=Resources(memory_bytes=6 * 1024 * 1024 - 1)) == found
    assert diagnosed(request, resources=Resources(memory_bytes=6 * 1024 * 1024)) == []
    assert diagnosed(request, resources=Resources(pids=1)) == []
    fails(build(lab, RUNC, ROOTFUL, request, "--memory", "1M"), "unable to set memory limit")
    runs(build(lab, RUNC, ROOTFUL, request, "--memory", "64M"))


@on_both
def test_relative_shell(runtime: Runtime, lab: Lab) -> None:
    flags = ("--sandbox-shell", "busybox")
    fails(build(lab, runtime, ROOTFUL, request_of(lab), *flags), "no such file or directory")


@on_both
def test_equal_variables(runtime: Runtime, lab: Lab) -> None:
    request = request_of(
        lab, 'test "$A" = last', environment_vars=[{"key": "A", "value": b"first"},
                                                   {"key": "A", "value": b"last"}]
    )  # fmt: skip
    assert diagnosed(request) == [("equal-variables", "environment_vars[0].key")]
    runs(build(lab, runtime, ROOTFUL, request))


@on_both
@pytest.mark.parametrize("mode", [ROOTFUL, USERNS], ids=["rootful", "userns"])
@pytest.mark.parametrize(
    ("working_dir", "texts"),
    [
        pytest.param("nix/store/file", ("not a directory",), id="file_input"),
        pytest.param("nix/store/file/in", ("not a directory",), id="in_file_input"),
        pytest.param("proc/nothing", ("/proc/nothing", "no such file"), id="proc"),
        pytest.param("sys/nothing", ("/sys/nothing",), id="sys"),
    ],
)
def test_unusable_working_dir(
    runtime: Runtime, mode: Mode, working_dir: str, texts: tuple[str, ...], lab: Lab
) -> None:
    request = request_of(lab, working_dir=working_dir)
    assert diagnosed(request) == [("unusable-working-dir", "working_dir")]
    fails(build(lab, runtime, mode, request), *texts)


# --- what lies over what --------------------------------------------------------------


@on_both
def test_symlink_input(runtime: Runtime, lab: Lab) -> None:
    inputs = lab.path / "inputs"
    (lab.path / "elsewhere").write_text("of the host\n")
    (inputs / "link").symlink_to(lab.path / "elsewhere")
    symlink = {"symlink": {"name": b"link", "target": b"anywhere"}}
    others = [node for node in nodes(inputs) if node.file.name != b"link"]
    request = request_of(
        lab,
        'test ! -L /nix/store/link && test "$(cat /nix/store/link)" = "of the host"',
        inputs=sorted([*others, symlink], key=_name_of),
    )
    assert [code for code, _ in diagnosed(request)] == ["symlink-input"]
    runs(build(lab, runtime, ROOTFUL, request))

    (lab.path / "elsewhere").unlink()
    fails(build(lab, runtime, ROOTFUL, request), "no such file or directory")


def _name_of(node: Any) -> bytes:
    if isinstance(node, dict):
        return node["symlink"]["name"]
    return node.file.name or node.directory.name


@on_both
@pytest.mark.parametrize(
    "path", ["nix/store/dir", "nix/store/dir/in/scratch"], ids=["at_it", "in_it"]
)
def test_scratch_shadowed_by_directory(runtime: Runtime, path: str, lab: Lab) -> None:
    request = request_of(
        lab, f"! touch /{path}/new", scratch_paths=["build", "nix/store", path],
        outputs=["nix/store/out"],
    )  # fmt: skip
    assert diagnosed(request) == [("shadowed-scratch", "scratch_paths[2]")]
    runs(build(lab, runtime, ROOTFUL, request))
    bundle = lab.path / "builds/bundle"
    assert list((bundle / scratch_path(path)).iterdir()) == []


@on_both
@pytest.mark.parametrize("path", ["nix/store/file", "nix/store/file/in"], ids=["at_it", "in_it"])
def test_scratch_shadowed_by_file(runtime: Runtime, path: str, lab: Lab) -> None:
    request = request_of(lab, scratch_paths=["build", path], outputs=[])
    assert diagnosed(request) == [("shadowed-scratch", "scratch_paths[1]")]
    fails(build(lab, runtime, ROOTFUL, request), "not a directory")


@on_both
def test_scratch_shadowed_by_ro_path(runtime: Runtime, lab: Lab) -> None:
    request = request_of(
        lab, "! touch /usr/bin/scratch/new; test -e /usr/bin/env",
        scratch_paths=["build", "usr/bin/scratch"], outputs=[],
        constraints={"available_ro_paths": ["/usr/bin"]},
    )  # fmt: skip
    assert diagnosed(request) == [("shadowed-scratch", "scratch_paths[1]")]
    runs(build(lab, runtime, ROOTFUL, request))


@on_both
def test_input_shadowed_by_ro_path(runtime: Runtime, lab: Lab) -> None:
    inputs = lab.inputs(bin={"mine": "mine\n"})
    request = request_of(
        lab, "test -e /usr/bin/env && test ! -e /usr/bin/mine", inputs_dir="usr",
        inputs=nodes(inputs), constraints={"available_ro_paths": ["/usr/bin"]},
    )  # fmt: skip
    assert diagnosed(request) == [("shadowed-input", "inputs[0]")]
    runs(build(lab, runtime, ROOTFUL, request))


@on_both
def test_all_inputs_shadowed_by_ro_path(runtime: Runtime, lab: Lab) -> None:
    request = request_of(
        lab, "test -e /usr/bin/env && test ! -e /usr/bin/tools",
        inputs_dir="usr/bin", constraints={"available_ro_paths": ["/usr/bin"]},
    )  # fmt: skip
    assert diagnosed(request) == [("shadowed-input", "inputs_dir")]
    runs(build(lab, runtime, ROOTFUL, request))


@on_both
@pytest.mark.parametrize(
    ("path", "runc", "crun"),
    [
        pytest.param("proc", "not of type proc", None, id="proc"),
        pytest.param("proc/new", "inside /proc", "no such file or directory", id="in_proc"),
        pytest.param("proc/sys", "inside /proc", None, id="over_part_of_proc"),
        pytest.param("sys", None, None, id="sys"),
        pytest.param("sys/new", "/sys/new", "/sys/new", id="in_sys"),
        pytest.param("sys/fs", None, None, id="over_part_of_sys"),
        pytest.param("dev", "/dev/null", "/dev/null", id="dev"),
        pytest.param("dev/null", "/dev/null", "/dev/null", id="dev_null"),
        pytest.param("dev/pts/new", "/dev/pts/new", "/dev/pts/new", id="in_dev_pts"),
        pytest.param("dev/mqueue/new", "/dev/mqueue/new", "/dev/mqueue/new", id="in_dev_mqueue"),
        pytest.param("dev/ptmx", "error setting up ptmx", None, id="dev_ptmx"),
        pytest.param("dev/shm", None, None, id="dev_shm"),
        pytest.param("dev/new", None, None, id="in_dev"),
    ],
)
def test_scratch_over_runtime_mount(
    runtime: Runtime, path: str, runc: str | None, crun: str | None, lab: Lab
) -> None:
    text = f"set -- /{path}/*; test ! -e $1"  # what was there is hidden: it is empty
    if path == "dev/ptmx":
        text = "true"
    request = request_of(lab, text, scratch_paths=sorted(["build", path]), outputs=[])
    ((code, field),) = diagnosed(request)
    assert code == f"mount-over-{path.split('/')[0]}"
    assert field == f"scratch_paths[{list(request.scratch_paths).index(path)}]"
    outcome = build(lab, runtime, ROOTFUL, request)
    expected = runc if runtime is RUNC else crun
    runs(outcome) if expected is None else fails(outcome, expected)


@on_both
@pytest.mark.parametrize("path", ["dev/zero", "dev/tty"])
def test_other_devices_depend_on_the_user_namespace(runtime: Runtime, path: str, lab: Lab) -> None:
    request = request_of(lab, scratch_paths=["build", path], outputs=[])
    assert diagnosed(request) == [("mount-over-dev", "scratch_paths[1]")]
    runs(build(lab, runtime, ROOTFUL, request))
    fails(build(lab, runtime, USERNS, request), f"/{path}")


@on_both
@pytest.mark.parametrize("top", ["proc", "sys", "dev"])
def test_inputs_over_runtime_mount(runtime: Runtime, top: str, lab: Lab) -> None:
    request = request_of(lab, inputs_dir=f"{top}/new", environment_vars=[])
    assert diagnosed(request) == [(f"mount-over-{top}", "inputs_dir")]
    outcome = build(lab, runtime, ROOTFUL, request)
    runs(outcome) if top == "dev" else fails(outcome, f"/{top}/new")


@on_both
def test_an_input_over_runtime_mount(runtime: Runtime, lab: Lab) -> None:
    inputs = lab.inputs(dev={"mine": "mine\n"})
    request = request_of(lab, inputs_dir="", inputs=nodes(inputs), environment_vars=[])
    assert diagnosed(request) == [("mount-over-dev", "inputs[0]")]
    fails(build(lab, runtime, ROOTFUL, request), "/dev/null")


@on_both
@pytest.mark.parametrize(
    ("path", "code", "runc"),
    [
        pytest.param("/proc/version", "mount-over-proc", "inside /proc", id="proc"),
        pytest.param("/proc/cpuinfo", None, None, id="proc_that_runc_takes"),
        pytest.param("/proc", None, None, id="all_of_proc"),
        pytest.param("/sys/kernel", None, None, id="sys"),
        pytest.param("/dev/ptmx", "mount-over-dev", "error setting up ptmx", id="dev_ptmx"),
        pytest.param("/dev/zero", None, None, id="dev"),
    ],
)
def test_ro_path_over_runtime_mount(
    runtime: Runtime, path: str, code: str | None, runc: str | None, lab: Lab
) -> None:
    request = request_of(lab, constraints={"available_ro_paths": [path]})
    field = "constraints.available_ro_paths[0]"
    assert diagnosed(request) == ([(code, field)] if code else [])
    outcome = build(lab, runtime, ROOTFUL, request)
    fails(outcome, runc) if runtime is RUNC and runc else runs(outcome)


@on_both
def test_mount_in_input(runtime: Runtime, lab: Lab) -> None:
    inputs = lab.inputs(bin={"mine": "mine\n"})
    request = request_of(lab, inputs_dir="", inputs=nodes(inputs))
    assert diagnosed(request) == [("mount-in-input", "inputs[0]")]
    outcome = build(lab, runtime, ROOTFUL, request)
    if runtime is RUNC:
        fails(outcome, "read-only file system")
        assert not (inputs / "bin/sh").exists()
    else:
        runs(outcome)
        assert (inputs / "bin/sh").exists()

    (inputs / "bin/sh").touch()  # where the input has it
    runs(build(lab, runtime, ROOTFUL, request))


@on_both
@pytest.mark.parametrize("by", ["scratch", "input"])
def test_file_over_directory(runtime: Runtime, by: str, lab: Lab) -> None:
    if by == "scratch":
        request = request_of(lab, scratch_paths=["bin/sh", "build"], outputs=[])
        field = "scratch_paths[0]"
    else:
        inputs = lab.inputs(sh={"mine": "mine\n"})
        request = request_of(lab, inputs_dir="bin", inputs=nodes(inputs))
        field = f"inputs[{[entry.name for entry in sorted(inputs.iterdir())].index('sh')}]"
    assert diagnosed(request) == [("file-over-directory", field)]
    fails(build_by_hand(lab, runtime, ROOTFUL, request), "not a directory")


@on_both
def test_private_tmp(runtime: Runtime, lab: Lab) -> None:
    text = "touch /tmp/x/new"
    request = request_of(lab, text, scratch_paths=["build", "tmp/x"], outputs=[])
    assert diagnosed(request) == [("private-tmp", "scratch_paths[1]")]
    fails(build(lab, runtime, ROOTFUL, request), "Permission denied")
    assert diagnosed(request, rootless=True)[1:] == []
    runs(build(lab, runtime, USERNS, request))

    with_tmp = request_of(lab, text, scratch_paths=["build", "tmp", "tmp/x"], outputs=[])
    assert diagnosed(with_tmp) == []
    runs(build(lab, runtime, ROOTFUL, with_tmp))


@on_both
def test_inputs_and_ro_paths_in_private_tmp(runtime: Runtime, lab: Lab) -> None:
    (lab.path / "here").write_text("here\n")
    inputs_there = request_of(lab, "read line < /tmp/file", inputs_dir="tmp", environment_vars=[])
    assert diagnosed(inputs_there) == [("private-tmp", "inputs_dir")]
    fails(build(lab, runtime, ROOTFUL, inputs_there), "Permission denied")

    path = str(lab.path / "here")
    if not path.startswith("/tmp/"):
        return
    ro_path_there = request_of(
        lab, f"read line < {path}", constraints={"available_ro_paths": [path]}
    )
    field = "constraints.available_ro_paths[0]"
    assert diagnosed(ro_path_there) == [("private-tmp", field)]
    fails(build(lab, runtime, ROOTFUL, ro_path_there), "Permission denied")


@on_both
def test_too_many_mounts(runtime: Runtime, lab: Lab) -> None:
    inputs = lab.inputs(**{f"{i:04}": "" for i in range(1006)})
    request = request_of(lab, inputs=nodes(inputs))  # and three more, and /bin/sh
    assert len(request.inputs) + 1 == 1010
    assert diagnosed(request) == [("too-many-mounts", "inputs")]
    outcome = build(lab, runtime, ROOTFUL, request)
    fails(outcome, "Too many open files") if runtime is CRUN else runs(outcome)

    del request.inputs[0]
    assert diagnosed(request) == []
    runs(build(lab, runtime, ROOTFUL, request))


# --- names, outputs, additional files -------------------------------------------------


@on_both
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        pytest.param({"scratch_paths": ["build", "n" * 256]}, "scratch_paths[1]", id="scratch"),
        pytest.param({"inputs_dir": "n" * 256}, "inputs_dir", id="inputs_dir"),
        pytest.param({"working_dir": "n" * 256}, "working_dir", id="working_dir"),
        pytest.param(
            {"constraints": {"available_ro_paths": ["/" + "n" * 256]}},
            "constraints.available_ro_paths[0]",
            id="ro_path",
        ),
        pytest.param(
            {"scratch_paths": ["build", "/".join(["n" * 255] * 16 + ["n"])]},
            "scratch_paths[1]",
            id="long_in_all",
        ),
    ],
)
def test_path_too_long(runtime: Runtime, fields: dict[str, Any], field: str, lab: Lab) -> None:
    request = request_of(lab, outputs=[], **fields)
    in_root = [("read-only-working-dir", field)] if field == "working_dir" else []
    assert diagnosed(request) == [*in_root, ("path-too-long", field)]
    fails(build_by_hand(lab, runtime, ROOTFUL, request), "file name too long")


@on_both
def test_output_too_long(runtime: Runtime, lab: Lab) -> None:
    name = "n" * 256
    request = request_of(lab, f"touch /build/{name}", outputs=[f"build/{name}"])
    assert diagnosed(request) == [("path-too-long", "outputs[0]")]
    fails(build(lab, runtime, ROOTFUL, request), "File name too long")


@on_both
@pytest.mark.parametrize(
    ("path", "why"),
    [
        pytest.param("build/out", "Device or resource busy", id="in_scratch"),
        pytest.param("out", "Read-only file system", id="in_the_root"),
    ],
)
def test_output_is_scratch(runtime: Runtime, path: str, why: str, lab: Lab) -> None:
    text = f"""
    ! rmdir /{path}
    ! mv /{path} /nix/store/elsewhere
    ! echo > /{path}
    echo "in the directory" > /{path}/file
    """
    scratch_paths = sorted(["build", path, "nix/store"])
    request = request_of(lab, text, scratch_paths=scratch_paths, outputs=[path])
    assert diagnosed(request) == [("output-is-scratch", "outputs[0]")]
    outcome = build(lab, runtime, ROOTFUL, request)
    runs(outcome)
    assert outcome.output.count(why) == 2


@on_both
@pytest.mark.parametrize(
    ("output", "ro_paths"),
    [
        pytest.param("nix/store/file", [], id="at_input"),
        pytest.param("nix/store/dir/out", [], id="in_input"),
        pytest.param("usr/bin/out", ["/usr/bin"], id="in_ro_path"),
    ],
)
def test_read_only_output(runtime: Runtime, output: str, ro_paths: list[str], lab: Lab) -> None:
    request = request_of(
        lab, f"! touch /{output}; ! busybox rm /{output}", outputs=[output],
        scratch_paths=["build", "nix/store", "usr"], constraints={"available_ro_paths": ro_paths},
    )  # fmt: skip
    assert diagnosed(request) == [("read-only-output", "outputs[0]")]
    runs(build(lab, runtime, ROOTFUL, request))


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("nix/store/dir/new", id="input"),
        pytest.param("usr/bin/new", id="ro_path"),
        pytest.param("bin/sh", id="sandbox_shell"),
        pytest.param("etc/hosts", id="etc_file"),
        pytest.param("build", id="scratch_path"),
        pytest.param("tmp/new", id="tmp"),
        pytest.param("dev/new", id="dev"),
    ],
)
def test_misplaced_additional_file(path: str, lab: Lab) -> None:
    """No runtime is asked: the bundle writer finds no place for it."""
    request = request_of(
        lab, additional_files=[{"path": path, "contents": b"mine"}],
        constraints={"available_ro_paths": ["/usr/bin"], "network_access": True},
    )  # fmt: skip
    assert diagnosed(request) == [("misplaced-additional-file", "additional_files[0].path")]
    refused = specgen(ROOTFUL, "bundle", "-", lab.path / "b", "--rootful", stdin=request)
    assert refused.exit_code == 1
    assert "additional_files[0]" in refused.output
    assert not (lab.path / "b").exists()
