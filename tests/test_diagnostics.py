"""Diagnostics as a function of request and options: where each is found, and where not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support import GOLDEN_NAMES, assert_has_table_of, build_request, file, golden_case

from specgen_core import IdMapping, SpecOptions, diagnose, read_request
from specgen_core.diagnostics import CODES, RULES, option_rules
from tvix.castore.protos.castore_pb2 import Node

DOCUMENT = Path(__file__).parent.parent / "docs" / "diagnostics.md"
QUIET = {"rootless": False, "terminal": False}
RUNS = {"command_args": ["/proc/self/exe"]}  # a command of which there is nothing to say


def found(fields: dict[str, Any], **options: Any) -> list[tuple[str, str]]:
    """Return codes and fields; without options of one's own, those say nothing."""
    request = read_request(build_request(**(RUNS | fields)))
    listed = [(one.code, one.field) for one in diagnose(request, SpecOptions(**(QUIET | options)))]
    if "working_dir" not in fields:  # build/, which is no scratch path in many of the cases
        listed = [one for one in listed if one[0] != "read-only-working-dir"]
    return listed


def directory(name: str) -> Node:
    return Node(directory={"name": name.encode(), "digest": b"d" * 32})


def symlink(name: str) -> Node:
    return Node(symlink={"name": name.encode(), "target": b"elsewhere"})


def ro(*paths: str, **others: Any) -> dict[str, Any]:
    return {"system": "x86_64-linux", "available_ro_paths": paths, **others}


SHELL = {"system": "x86_64-linux", "provide_bin_sh": True}
NETWORK = {"system": "x86_64-linux", "network_access": True}
IN_STORE = {"scratch_paths": ["build", "nix/store"]}


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_nothing_to_say_of_what_runs(name: str) -> None:
    case = golden_case(name).request
    has_command = case.constraints.provide_bin_sh or case.command_args[0].startswith("/nix")
    expected = [] if has_command else ["unusable-command"]  # they name a /bin/sh that is not there
    expected = {
        "three_node_kinds": [*expected, "symlink-input"],
        "equal_env_keys": [*expected, "equal-variables"],
        "ro_paths": ["device-without-rule", *expected],  # /dev/kvm
        "network_bin_sh_ro_paths": ["device-without-rule"],
        "empty_working_dir": [*expected, "read-only-working-dir"],
        "minimal": [*expected, "read-only-working-dir"],
        "no_scratch_no_outputs": [*expected, "read-only-working-dir"],
    }.get(name, expected)
    assert [one.code for one in diagnose(read_request(case), SpecOptions(**QUIET))] == expected


ROOT = IdMapping(0, 0, 1)
UIDS = (ROOT, IdMapping(1000, 100_000, 1))
GIDS = (ROOT, IdMapping(100, 100_000, 1))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"terminal": True}, [("needs-terminal", "options.terminal")], id="terminal"),
        pytest.param(
            {"rootless": True}, [("no-id-mappings", "options.uid_mappings")], id="no_mappings"
        ),
        pytest.param(
            {"rootless": True, "gid_mappings": GIDS},
            [("no-id-mappings", "options.uid_mappings")],
            id="no_uid_mappings",
        ),
        pytest.param(
            {"rootless": True, "uid_mappings": UIDS},
            [("no-id-mappings", "options.gid_mappings")],
            id="no_gid_mappings",
        ),
        pytest.param(
            {"rootless": True, "uid_mappings": UIDS[:1], "gid_mappings": GIDS[:1]},
            [
                ("build-user-not-mapped", "options.uid_mappings"),
                ("build-user-not-mapped", "options.gid_mappings"),
            ],
            id="build_user_not_mapped",
        ),
        pytest.param(
            {"rootless": True, "uid_mappings": UIDS[1:], "gid_mappings": GIDS[1:]},
            [
                ("root-not-mapped", "options.uid_mappings"),
                ("root-not-mapped", "options.gid_mappings"),
            ],
            id="root_not_mapped",
        ),
        pytest.param(
            {"rootless": True, "uid_mappings": UIDS, "gid_mappings": GIDS}, [], id="mapped"
        ),
        pytest.param(
            {
                "rootless": True,
                "uid_mappings": (IdMapping(0, 100_000, 1001),),
                "gid_mappings": (IdMapping(0, 100_000, 101),),
            },
            [],
            id="mapped_as_one_range",
        ),
    ],
)
def test_options(options: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert found({}, **options) == expected


LONG = 128 * 1024

CASES = [
    # the command
    pytest.param({"command_args": ["/proc/self/exe", "a" * (LONG - 1)]}, [], id="longest_argument"),
    pytest.param(
        {"command_args": ["/proc/self/exe", "ä" * (LONG // 2)]},
        [("argument-too-long", "command_args[1]")],
        id="argument_too_long",
    ),
    pytest.param(
        {"environment_vars": [{"key": "K", "value": b"v" * (LONG - 2)}]},
        [("argument-too-long", "environment_vars[0].value")],
        id="variable_too_long",
    ),
    pytest.param(  # in which it is not looked for, as execve(2) fails before
        {
            "command_args": ["tool"],
            "environment_vars": [{"key": "PATH", "value": b"/none:" * LONG}],
        },
        [("argument-too-long", "environment_vars[0].value")],
        id="path_too_long_to_search",
    ),
    pytest.param(  # 2 MiB and one byte, with the file name and HOME=/
        {"command_args": ["\U0001f600" * 262141]},
        [
            ("argument-too-long", "command_args[0]"),
            ("arguments-too-long", "command_args"),
            ("command-without-path", "command_args[0]"),
        ],
        id="arguments_just_too_long",
    ),
    pytest.param(  # a file, where a directory must be
        {
            "inputs": [{"file": {"name": b"n", "digest": bytes(32)}}],
            "inputs_dir": "q" * 4095,
            "command_args": ["/proc/self/exe"],
            "working_dir": f"{'q' * 4095}/n/x",
        },
        [
            ("unusable-working-dir", "working_dir"),
            ("read-only-working-dir", "working_dir"),
            ("path-too-long", "working_dir"),
            ("path-too-long", "inputs_dir"),
        ],
        id="working_dir_too_long_in_a_file",
    ),
    pytest.param(
        {"command_args": ["/proc/self/exe", *["a" * 100_000] * 21]},
        [("arguments-too-long", "command_args")],
        id="arguments_too_long",
    ),
    pytest.param(
        {"command_args": ["/proc/self/exe", *[""] * 300_000]},
        [("arguments-too-long", "command_args")],
        id="arguments_too_many",
    ),
    pytest.param(
        {"command_args": ["sh"]},
        [("command-without-path", "command_args[0]")],
        id="command_without_path",
    ),
    pytest.param(
        {"command_args": ["sh"], "environment_vars": [{"key": "PATH", "value": b"/bin"}],
         "constraints": SHELL},
        [],
        id="command_with_path",
    ),
    *(
        pytest.param(
            {"inputs": [directory("dir"), file("file")], "command_args": [command], **fields},
            [("unusable-command", "command_args[0]")] if is_found else [],
            id=id_,
        )
        for id_, command, is_found, fields in (
            ("command_empty", "", True, {}),
            ("command_builtin", "builtin:fetchurl", True, {}),
            ("command_sh", "/bin/sh", True, {}),
            ("command_nowhere", "/usr/bin/env", True, {}),
            ("command_in_missing_input", "/nix/store/x/bin/sh", True, {}),
            ("command_is_directory", "/nix/store/dir", True, {}),
            ("command_in_directory", "/nix/store/dir/bin/sh", False, {}),
            ("command_in_file", "/nix/store/file/x", True, {}),
            ("command_not_executable", "/nix/store/file", True, {}),
            ("command_relative", "./configure", True, {}),
            ("command_up", "/build/../nix/store/dir/x", False, {}),
            ("command_in_ro_path", "/opt/x", False,
             {"constraints": {"system": "x86_64-linux", "available_ro_paths": ["/opt"]}}),
            ("command_is_additional_file", "/build/x", True,
             {"additional_files": [{"path": "build/x"}]}),
            ("command_relative_to_file", "./x", True,
             {"additional_files": [{"path": "build/x"}]}),
            ("command_in_tmp", "/tmp/x", True, {}),
        )
    ),
    pytest.param(
        {"inputs": [file("tool", executable=True)], "command_args": ["/nix/store/tool"]},
        [],
        id="command_executable",
    ),
    pytest.param(
        {"inputs": [symlink("link")], "command_args": ["/nix/store/link"]},
        [("symlink-input", "inputs[0].symlink")],
        id="command_is_link",
    ),
    pytest.param(
        {"command_args": ["sh"], "environment_vars": [{"key": "PATH", "value": b"/usr/bin:"}]},
        [("unusable-command", "command_args[0]")],
        id="path_leads_nowhere",
    ),
    pytest.param(
        {"command_args": ["sh"], "environment_vars": [{"key": "PATH", "value": b""}]},
        [("unusable-command", "command_args[0]")],
        id="path_empty",
    ),
    pytest.param(
        {"inputs": [directory("t")], "command_args": ["x"],
         "environment_vars": [{"key": "PATH", "value": b"/usr/bin:/nix/store/t/bin"}]},
        [],
        id="path_leads_into_input",
    ),
    # what it wants of the host
    *(
        pytest.param(
            {"constraints": {"system": system}},
            [(code, "constraints.system")] if code else [],
            id=f"system_{system}",
        )
        for system, code in (
            ("x86_64-linux", ""), ("riscv64-linux", ""), ("i686-linux", "needs-personality"),
            ("armv7l-linux", "needs-personality"), ("aarch64-darwin", "foreign-system"),
            ("X86_64-linux", "foreign-system"), ("builtin", "foreign-system"),
            (" x86_64-linux", "foreign-system"),
        )
    ),
    pytest.param(
        {"constraints": ro("/dev/null", "/dev/shm", "/dev/kvm", "/dev/dri/card0")},
        [("device-without-rule", f"constraints.available_ro_paths[{i}]") for i in (2, 3)],
        id="devices",
    ),
    pytest.param(
        {"environment_vars": [{"key": key, "value": b"v"} for key in "AABBBC"]},
        [("equal-variables", f"environment_vars[{i}].key") for i in (0, 2, 3)],
        id="equal_variables",
    ),
    pytest.param(
        {"working_dir": "bin/sh/x", "constraints": SHELL},
        [("unusable-working-dir", "working_dir")],
        id="working_dir_in_shell",
    ),
    pytest.param(
        {"working_dir": "build/b", "additional_files": [{"path": "build/b"}]},
        [("misplaced-additional-file", "additional_files[0].path")],
        id="file_at_working_dir",
    ),
    pytest.param(
        {"inputs": [file("a")], "working_dir": "nix/store/a/b"},
        [("unusable-working-dir", "working_dir")],
        id="working_dir_in_file",
    ),
    pytest.param(
        {"inputs": [directory("a")], "working_dir": "nix/store/a/b"},
        [("read-only-working-dir", "working_dir")],
        id="working_dir_in_input",
    ),
    pytest.param(
        {"working_dir": "proc/self"},
        [("unusable-working-dir", "working_dir")],
        id="working_dir_in_proc",
    ),
    pytest.param(
        {"working_dir": "opt/x"}, [("read-only-working-dir", "working_dir")], id="wd_in_root"
    ),
    pytest.param(
        {"working_dir": ""}, [("read-only-working-dir", "working_dir")], id="wd_is_root"
    ),
    pytest.param(
        {"working_dir": "tmp/x", "environment_vars": [
            {"key": "TEMP", "value": b"/build/t"}, {"key": "TMP", "value": b"/tmp/"},
            {"key": "TMPDIR", "value": b"/tmp"}, {"key": "X", "value": b"/tmp"}]},
        [("unwritable-tmp", field) for field in
         ("working_dir", "environment_vars[1].value", "environment_vars[2].value")],
        id="tmp_is_closed",
    ),
    # inputs and scratch paths
    pytest.param(
        {"inputs": [file("a"), symlink("b"), symlink("c")]},
        [("symlink-input", "inputs[1].symlink"), ("symlink-input", "inputs[2].symlink")],
        id="symlinks",
    ),
    pytest.param(
        {"inputs": [directory("a")], "scratch_paths": ["build", "nix/store", "nix/store/a"]},
        [("shadowed-scratch", "scratch_paths[2]")],
        id="scratch_at_input",
    ),
    pytest.param(
        {"inputs": [directory("a")], "scratch_paths": ["nix/store", "nix/store/a/b/c"]},
        [("shadowed-scratch", "scratch_paths[1]")],
        id="scratch_in_input",
    ),
    pytest.param(
        {"inputs": [directory("a")], "scratch_paths": ["nix/store", "nix/store/ab"]},
        [],
        id="scratch_beside_input",
    ),
    pytest.param(
        {"inputs": [directory("a")], "scratch_paths": ["build"], "inputs_dir": "", "outputs": []},
        [],
        id="inputs_at_the_root",
    ),
    pytest.param(
        {"inputs": [directory("build")], "inputs_dir": "", **IN_STORE},
        [("shadowed-scratch", "scratch_paths[0]")],
        id="input_over_scratch",
    ),
    pytest.param(
        {"constraints": ro("/nix"), **IN_STORE, "outputs": []},
        [("shadowed-scratch", "scratch_paths[1]")],
        id="ro_path_over_scratch",
    ),
    pytest.param(
        {"inputs": [file("a")], "constraints": ro("/nix/store"), "scratch_paths": ["build"],
         "outputs": []},
        [("shadowed-input", "inputs_dir")],
        id="ro_path_over_inputs",
    ),
    pytest.param(
        {"inputs": [file("a"), file("b")], "constraints": ro("/nix/store/b")},
        [("shadowed-input", "inputs[1]")],
        id="ro_path_over_an_input",
    ),
    pytest.param(
        {"inputs": [directory("a")], "constraints": ro("/nix/store/a/b")},
        [("mount-in-input", "inputs[0]")],
        id="ro_path_in_input",
    ),
    pytest.param(
        {"inputs": [directory("bin")], "inputs_dir": "", "constraints": SHELL},
        [("mount-in-input", "inputs[0]")],
        id="shell_in_input",
    ),
    pytest.param(
        {"inputs": [directory("sh")], "inputs_dir": "bin", "constraints": SHELL},
        [("file-over-directory", "inputs[0]")],
        id="shell_over_input",
    ),
    pytest.param(
        {"inputs": [file("sh")], "inputs_dir": "bin", "constraints": SHELL}, [], id="shell_wins"
    ),
    pytest.param(
        {"scratch_paths": ["build", "etc/hosts"], "constraints": NETWORK, "outputs": []},
        [("file-over-directory", "scratch_paths[1]")],
        id="etc_file_over_scratch",
    ),
    pytest.param(
        {"scratch_paths": ["bin/sh/x", "build"], "constraints": SHELL, "outputs": []},
        [("file-over-directory", "scratch_paths[0]")],
        id="scratch_in_shell",
    ),
    pytest.param(
        {"inputs": [directory("a")], "inputs_dir": "bin/sh", "constraints": SHELL},
        [("file-over-directory", "inputs[0]")],
        id="inputs_in_shell",
    ),
    pytest.param(
        {"constraints": ro("/bin/sh/x", provide_bin_sh=True)},
        [("file-over-directory", "constraints.available_ro_paths[0]")],
        id="ro_path_in_shell",
    ),
    pytest.param(
        {"additional_files": [{"path": "a"}, {"path": "a/b"}]},
        [("misplaced-additional-file", "additional_files[1].path")],
        id="file_in_file",
    ),
    # what the runtime mounts
    pytest.param(
        {"scratch_paths": ["build", "dev/shm", "proc", "procfs", "sys/x"], "outputs": [],
         "command_args": ["/dev/x"]},
        [
            ("mount-over-proc", "scratch_paths[2]"),
            ("mount-over-sys", "scratch_paths[4]"),
            ("mount-over-dev", "scratch_paths[1]"),
        ],
        id="scratch_over_runtime_mounts",
    ),
    pytest.param(
        {"inputs": [file("a")], "inputs_dir": "sys/x"},
        [("mount-over-sys", "inputs_dir")],
        id="inputs_in_sys",
    ),
    pytest.param({"inputs_dir": "sys/x"}, [], id="no_inputs_in_sys"),
    pytest.param(
        {"inputs": [file("cpuinfo"), file("stat")], "inputs_dir": "proc"},
        [],
        id="inputs_that_runc_takes",
    ),
    pytest.param(
        {"inputs": [directory("dev"), file("x")], "inputs_dir": ""},
        [("mount-over-dev", "inputs[0]")],
        id="an_input_over_dev",
    ),
    pytest.param(
        {"constraints": ro("/dev/fuse", "/dev/kvm", "/dev/ptmx", "/proc/cpuinfo", "/proc/version",
                           "/sys/kernel")},
        [
            ("device-without-rule", "constraints.available_ro_paths[0]"),
            ("device-without-rule", "constraints.available_ro_paths[1]"),
            ("mount-over-proc", "constraints.available_ro_paths[4]"),
            ("mount-over-dev", "constraints.available_ro_paths[2]"),
        ],
        id="ro_paths",
    ),
    pytest.param(
        {"constraints": ro("/")},
        [("mount-over-root", "constraints.available_ro_paths[0]")],
        id="ro_path_of_all",
    ),
    pytest.param(
        {"scratch_paths": ["build", "tmp/x"], "outputs": []},
        [("private-tmp", "scratch_paths[1]")],
        id="in_tmp",
    ),
    pytest.param(
        {"scratch_paths": ["build", "tmp", "tmp/x", "tmpx/y"], "outputs": []}, [], id="with_tmp"
    ),
    pytest.param({"inputs_dir": "tmp"}, [], id="no_inputs_in_tmp"),
    pytest.param(
        {"inputs": [file("a")], "inputs_dir": "tmp", "constraints": ro("/tmp/x")},
        [("private-tmp", "inputs_dir"), ("private-tmp", "constraints.available_ro_paths[0]")],
        id="inputs_and_ro_path_in_tmp",
    ),
    pytest.param({"inputs": [file(f"{i:04}") for i in range(1009)]}, [], id="most_inputs"),
    pytest.param(
        {"inputs": [file(f"{i:04}") for i in range(1009)], "constraints": SHELL},
        [("too-many-mounts", "inputs")],
        id="too_many_mounts",
    ),
    # names
    pytest.param(
        {"scratch_paths": ["ä" * 127, "ä" * 128], "outputs": []},
        [("path-too-long", "scratch_paths[1]")],
        id="name_too_long",
    ),
    pytest.param(
        {"working_dir": "/".join(["x" * 100] * 41)},
        [("read-only-working-dir", "working_dir"), ("path-too-long", "working_dir")],
        id="path_too_long",
    ),
    pytest.param(
        {"outputs": ["build/" + "x" * 256]}, [("path-too-long", "outputs[0]")], id="long_output"
    ),
    # outputs and additional files
    pytest.param(
        {"outputs": ["build", "build/x"]}, [("output-is-scratch", "outputs[0]")], id="output"
    ),
    pytest.param(
        {"inputs": [directory("a")], "outputs": ["nix/store/a/b", "nix/store/ab"]},
        [("read-only-output", "outputs[0]")],
        id="output_in_input",
    ),
    pytest.param(
        {"constraints": ro("/nix/store/x"), "outputs": ["nix/store/x/y"]},
        [("read-only-output", "outputs[0]")],
        id="output_in_ro_path",
    ),
    pytest.param(
        {
            "inputs": [directory("a")],
            "constraints": {**SHELL, **NETWORK, "available_ro_paths": ["/opt"]},
            "additional_files": [
                {"path": path}
                for path in ("bin/bash", "bin/sh", "build", "build/x", "etc/hosts", "etc/x",
                             "nix/store/a/x", "nix/store/x", "opt/x", "proc/x", "tmp/x")
            ],
        },
        [
            ("misplaced-additional-file", f"additional_files[{i}].path")
            for i in (1, 2, 4, 6, 8, 9, 10)
        ],
        id="additional_files",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "expected"), CASES)
def test_request(fields: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert found(fields) == expected


def test_tmp_is_open_in_a_user_namespace() -> None:
    fields = {"scratch_paths": ["build", "tmp/x"], "outputs": []}
    assert found(fields, rootless=True, uid_mappings=UIDS, gid_mappings=GIDS) == []


def test_nix_leaves_room_and_opens_what_the_seed_closes() -> None:
    fields = {
        "inputs": [file(f"{i:04}") for i in range(2000)],
        "scratch_paths": ["build", "nix/store", "tmp/x"],
        "environment_vars": [{"key": "TMPDIR", "value": b"/tmp"}],
        "constraints": {"system": "i686-linux", "available_ro_paths": ["/dev/kvm"]},
    }
    request = read_request(build_request(**(RUNS | fields)))
    options = SpecOptions(**QUIET).override(profile="nix")
    assert diagnose(request, options) == []


@pytest.mark.parametrize(
    ("wanted", "expected"), [(True, [("relative-shell", "options.sandbox_shell")]), (False, [])]
)
def test_relative_shell(wanted: bool, expected: list[tuple[str, str]]) -> None:
    constraints = {"system": "x86_64-linux", "provide_bin_sh": wanted}
    assert found({"constraints": constraints}, sandbox_shell="busybox") == expected


def test_a_terminal_takes_a_file() -> None:
    inputs = [file(f"{i:04}") for i in range(1009)]
    codes = [code for code, _ in found({"inputs": inputs}, terminal=True)]
    assert codes == ["needs-terminal", "too-many-mounts"]


def test_at_most_20_of_a_code() -> None:
    """And one code with many findings hides no other."""
    many = {
        "inputs": [symlink(f"{i:03}") for i in range(100)],
        "scratch_paths": ["nix/store", *(f"nix/store/{i:03}" for i in range(100))],
    }
    codes = [code for code, _ in found(many)]
    assert codes == ["symlink-input"] * 20 + ["shadowed-scratch"] * 20


def test_messages_are_one_line_that_is_safe_to_print() -> None:
    request = read_request(build_request(inputs=[symlink("a\x1b[31m\n" + "b" * 100)], **RUNS))
    (one,) = diagnose(request, SpecOptions(**QUIET))
    assert one.message.isprintable()
    assert len(one.message) < 300


def test_every_code_is_tried_here() -> None:
    """Those about options are tried on the runtimes alone."""
    tried = {code for case in CASES for code, _ in case.values[1]}
    of_options = {rule.code for rule in option_rules.RULES}
    assert tried | of_options | {"relative-shell"} == set(CODES)


def test_every_entry_is_whole() -> None:
    source = (Path(__file__).parent / "test_diagnostics_on_runtimes.py").read_text()
    defined = set(re.findall(r"^def (test_\w+)\(", source, re.MULTILINE))
    assert len(set(CODES)) == len(CODES)
    assert {name for rule in RULES for name in rule.proven_by} == defined
    assert [rule.code for rule in RULES if not rule.proven_by] == ["mount-over-root"]
    for rule in RULES:
        assert (rule.find.__doc__ or "").strip().endswith(".")


def test_the_document_has_the_table_of_the_entries() -> None:
    """SPECGEN_REWRITE=1 writes it anew."""
    assert_has_table_of(DOCUMENT, "What happens, and what to do", RULES)
