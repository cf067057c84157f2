"""Validation: every rule, its boundary, and all that is broken named at once."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from google.rpc.code_pb2 import Code
from support import InvalidCase, build_request, file, invalid_cases, names_field

from specgen_core import InvalidRequest, UnreadableMessage, Violation, read_request
from specgen_core import paths as paths_module
from specgen_core.text import printable, quoted
from specgen_server.rpc.errors import status_of
from tvix.build.protos.build_pb2 import BuildRequest
from tvix.castore.protos.castore_pb2 import Node


def violations_of(request: BuildRequest | bytes) -> list[tuple[str, str]]:
    """Return what a request breaks: (field, description) each."""
    with pytest.raises(InvalidRequest) as refused:
        read_request(request)
    assert refused.value.total == len(refused.value.violations)
    return [(violation.field, violation.description) for violation in refused.value.violations]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in invalid_cases()])
def test_reference_case(case: InvalidCase) -> None:
    named = [field for field, _ in violations_of(case.request)]

    assert any(names_field(field, case.field) for field in named), named


def test_all_reference_cases_are_there() -> None:
    assert len(invalid_cases()) == 41


# --- one rule each: the field, and the words ------------------------------------------

DIGEST = b"d" * 32
SLASH = "must not have a doubled or trailing slash"
LEADING = "must be relative to the sandbox's root, without a leading slash"
DOTS = 'must not have "." or ".." as a segment'
NUL = "must not contain a NUL byte"
NAME_LENGTH = "must be 1 to 255 bytes long, is"
TARGET_LENGTH = "must be 1 to 4095 bytes long, is"


def env(*pairs: tuple[str, bytes]) -> list[dict[str, Any]]:
    return [{"key": key, "value": value} for key, value in pairs]


def constraints(**fields: Any) -> dict[str, Any]:
    return {"system": "x86_64-linux"} | fields


def files(*paths: str) -> list[dict[str, Any]]:
    return [{"path": path} for path in paths]


def link(name: bytes, target: bytes) -> Node:
    return Node(symlink={"name": name, "target": target})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # nodes
        pytest.param(
            {"inputs": [Node()]},
            [("inputs[0]", "has no node: set directory, file or symlink")],
            id="node_unset",
        ),
        pytest.param(
            {"inputs": [file("")]},
            [("inputs[0].file.name", f"{NAME_LENGTH} 0")],
            id="name_empty",
        ),
        pytest.param(
            {"inputs": [file("n" * 256)]},
            [("inputs[0].file.name", f"{NAME_LENGTH} 256")],
            id="name_256_bytes",
        ),
        pytest.param(
            {"inputs": [file("é" * 128)]},
            [("inputs[0].file.name", f"{NAME_LENGTH} 256")],
            id="name_128_characters_256_bytes",
        ),
        pytest.param(
            {"inputs": [file(".")]},
            [("inputs[0].file.name", 'must not be "." or ".."')],
            id="name_dot",
        ),
        pytest.param(
            {"inputs": [Node(directory={"name": b"..", "digest": DIGEST})]},
            [("inputs[0].directory.name", 'must not be "." or ".."')],
            id="name_dotdot",
        ),
        pytest.param(
            {"inputs": [link(b"a/b", b"t")]},
            [("inputs[0].symlink.name", "must not contain a slash")],
            id="name_slash",
        ),
        pytest.param({"inputs": [file("a\0b")]}, [("inputs[0].file.name", NUL)], id="name_nul"),
        pytest.param(
            {"inputs": [file(b"\xff")]},
            [("inputs[0].file.name", "must be UTF-8")],
            id="name_not_utf8",
        ),
        pytest.param(
            {"inputs": [file(b"\xed\xa0\x80")]},
            [("inputs[0].file.name", "must be UTF-8")],
            id="name_surrogate",
        ),
        pytest.param(
            {"inputs": [file("a", digest=b"d" * 31)]},
            [("inputs[0].file.digest", "must be a BLAKE3 digest, 32 bytes long, is 31")],
            id="digest_31_bytes",
        ),
        pytest.param(
            {"inputs": [Node(directory={"name": b"a", "digest": b"d" * 33})]},
            [("inputs[0].directory.digest", "must be a BLAKE3 digest, 32 bytes long, is 33")],
            id="digest_33_bytes",
        ),
        pytest.param(
            {"inputs": [Node(directory={"name": b"a"})]},
            [("inputs[0].directory.digest", "must be a BLAKE3 digest, 32 bytes long, is 0")],
            id="digest_missing",
        ),
        pytest.param(
            {"inputs": [link(b"a", b"")]},
            [("inputs[0].symlink.target", f"{TARGET_LENGTH} 0")],
            id="target_empty",
        ),
        pytest.param(
            {"inputs": [link(b"a", b"t" * 4096)]},
            [("inputs[0].symlink.target", f"{TARGET_LENGTH} 4096")],
            id="target_4096_bytes",
        ),
        pytest.param(
            {"inputs": [link(b"a", b"a\0b")]}, [("inputs[0].symlink.target", NUL)], id="target_nul"
        ),
        pytest.param(
            {"inputs": [file("b"), file("a")]},
            [("inputs", 'must be sorted by name, bytewise: "a" must not come after "b"')],
            id="inputs_unsorted",
        ),
        pytest.param(
            {"inputs": [file("a"), file("a")]},
            [("inputs", 'must not have a name twice, have "a"')],
            id="inputs_same_name",
        ),
        pytest.param(
            {"inputs": [file("a"), link(b"a", b"t")]},
            [("inputs", 'must not have a name twice, have "a"')],
            id="inputs_same_name_of_two_kinds",
        ),
        # the command and its environment
        pytest.param(
            {"command_args": []},
            [("command_args", "must name the command to run, is empty")],
            id="command_args_empty",
        ),
        pytest.param(
            {"command_args": ["a", "\0"]}, [("command_args[1]", NUL)], id="command_arg_nul"
        ),
        pytest.param(
            {"environment_vars": env(("", b"v"))},
            [("environment_vars[0].key", "must not be empty")],
            id="env_key_empty",
        ),
        pytest.param(
            {"environment_vars": env(("a=b", b"v"))},
            [("environment_vars[0].key", 'must not contain "=", is "a=b"')],
            id="env_key_equals_sign",
        ),
        pytest.param(
            {"environment_vars": env(("a\0", b"v"))},
            [("environment_vars[0].key", NUL)],
            id="env_key_nul",
        ),
        pytest.param(
            {"environment_vars": env(("a", b"v\0"))},
            [("environment_vars[0].value", NUL)],
            id="env_value_nul",
        ),
        pytest.param(
            {"environment_vars": env(("a", b"ok\xff"))},
            [("environment_vars[0].value", "must be UTF-8, is not at byte 2")],
            id="env_value_not_utf8",
        ),
        pytest.param(
            {"environment_vars": env(("b", b""), ("a", b""))},
            [
                (
                    "environment_vars",
                    'must be sorted by key, bytewise: "a" must not come after "b"',
                )
            ],
            id="env_unsorted",
        ),
        # paths
        pytest.param({"working_dir": "/a"}, [("working_dir", f'{LEADING}, is "/a"')], id="wd_abs"),
        pytest.param({"working_dir": "a/"}, [("working_dir", f'{SLASH}, is "a/"')], id="wd_slash"),
        pytest.param({"working_dir": "."}, [("working_dir", f'{DOTS}, is "."')], id="wd_dot"),
        pytest.param({"working_dir": "a/.."}, [("working_dir", f'{DOTS}, is "a/.."')], id="wd_up"),
        pytest.param({"working_dir": "a\0"}, [("working_dir", f'{NUL}, is "a\\x00"')], id="wd_nul"),
        pytest.param(
            {"inputs_dir": "a//b"}, [("inputs_dir", f'{SLASH}, is "a//b"')], id="inputs_dir_doubled"
        ),
        pytest.param(
            {"inputs_dir": "../a"}, [("inputs_dir", f'{DOTS}, is "../a"')], id="inputs_dir_up"
        ),
        pytest.param(
            {"scratch_paths": ["", "nix/store"]},
            [("scratch_paths[0]", "must not be empty")],
            id="scratch_empty",
        ),
        pytest.param(
            {"scratch_paths": ["nix/store", "b"]},
            [
                (
                    "scratch_paths",
                    'must be sorted, bytewise: "b" must not come after "nix/store"',
                )
            ],
            id="scratch_unsorted",
        ),
        pytest.param(
            {"outputs": ["", "nix/store/a"]},
            [("outputs[0]", "must not be empty")],
            id="output_empty",
        ),
        pytest.param(
            {"outputs": ["nix/store/./a"]},
            [("outputs[0]", f'{DOTS}, is "nix/store/./a"')],
            id="output_dot",
        ),
        pytest.param(
            {"outputs": ["var/out"]},
            [("outputs[0]", 'must lie at or under a scratch path, "var/out" does not')],
            id="output_outside_scratch",
        ),
        pytest.param(
            {"outputs": ["nix/store-2/out"]},
            [("outputs[0]", 'must lie at or under a scratch path, "nix/store-2/out" does not')],
            id="output_beside_scratch_of_its_prefix",
        ),
        pytest.param(
            {"outputs": ["nix"]},
            [("outputs[0]", 'must lie at or under a scratch path, "nix" does not')],
            id="output_above_scratch",
        ),
        pytest.param(
            {"scratch_paths": [], "outputs": ["nix/store/out"]},
            [("outputs[0]", 'must lie at or under a scratch path, "nix/store/out" does not')],
            id="output_without_any_scratch",
        ),
        pytest.param(
            {"additional_files": files("")},
            [("additional_files[0].path", "must not be empty")],
            id="additional_file_empty",
        ),
        pytest.param(
            {"additional_files": files("a", "/b")},
            [
                ("additional_files[1].path", f'{LEADING}, is "/b"'),
                (
                    "additional_files",
                    'must be sorted by path, bytewise: "/b" must not come after "a"',
                ),
            ],
            id="additional_file_absolute",
        ),
        # constraints
        pytest.param(
            {"constraints": constraints(system="")},
            [("constraints.system", "must not be empty where constraints is set")],
            id="system_empty",
        ),
        pytest.param(
            {"constraints": constraints(available_ro_paths=["dev/kvm"])},
            [
                (
                    "constraints.available_ro_paths[0]",
                    'must be absolute, with a leading slash, is "dev/kvm"',
                )
            ],
            id="ro_path_relative",
        ),
        pytest.param(
            {"constraints": constraints(available_ro_paths=["/dev/kvm/"])},
            [("constraints.available_ro_paths[0]", f'{SLASH}, is "/dev/kvm/"')],
            id="ro_path_trailing_slash",
        ),
    ],
)
def test_rule(fields: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert violations_of(build_request(**fields)) == expected


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("//dev/kvm", id="two_leading"),
        pytest.param("//", id="two_only"),
        pytest.param("/dev//kvm", id="doubled"),
        pytest.param("/.", id="dot"),
        pytest.param("/..", id="dotdot"),
        pytest.param("/a/../b", id="up"),
        pytest.param("/a\0", id="nul"),
        pytest.param("", id="empty"),
        pytest.param(".", id="relative_dot"),
    ],
)
def test_unclean_ro_path(path: str) -> None:
    request = build_request(constraints=constraints(available_ro_paths=[path]))

    fields = {field for field, _ in violations_of(request)}

    assert fields == {"constraints.available_ro_paths[0]"}


# --- what lies just within the rules --------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"inputs": [file("n")]}, id="name_1_byte"),
        pytest.param({"inputs": [file("n" * 255)]}, id="name_255_bytes"),
        pytest.param({"inputs": [file("...")]}, id="name_three_dots"),
        pytest.param({"inputs": [file("a b\n\\\"'")]}, id="name_blanks_and_quotes"),
        pytest.param({"inputs": [link(b"a", b"t")]}, id="target_1_byte"),
        pytest.param({"inputs": [link(b"a", b"t" * 4095)]}, id="target_4095_bytes"),
        pytest.param({"inputs": [link(b"a", b"\xff/../x//")]}, id="target_of_any_bytes"),
        pytest.param({"inputs": [file("\uffee"), file("\U00010000")]}, id="names_utf8_order"),
        pytest.param({"environment_vars": env(("a", b"1"), ("a", b"2"))}, id="env_equal_keys"),
        pytest.param({"environment_vars": env(("a", b"b=c"))}, id="env_equals_sign_in_value"),
        pytest.param({"environment_vars": env(("a", b""))}, id="env_value_empty"),
        pytest.param({"environment_vars": env((" ", b"v"))}, id="env_key_blank"),
        pytest.param(
            {"environment_vars": env(("\uffee", b""), ("\U00010000", b""))}, id="env_utf8_order"
        ),
        pytest.param({"command_args": [""]}, id="command_empty_string"),
        pytest.param({"working_dir": "", "inputs_dir": ""}, id="directories_of_the_root"),
        pytest.param({"working_dir": "..."}, id="three_dots_are_a_name"),
        pytest.param({"working_dir": "a/.b/b./..c"}, id="dots_within_names"),
        pytest.param({"working_dir": "a\\b\n"}, id="backslash_and_newline"),
        pytest.param({"scratch_paths": ["nix/store"] * 2}, id="scratch_equal_neighbours"),
        pytest.param({"scratch_paths": [], "outputs": []}, id="no_scratch_no_outputs"),
        pytest.param({"outputs": ["nix/store/a"] * 2}, id="outputs_equal_neighbours"),
        pytest.param({"outputs": ["nix/store/b", "nix/store/a"]}, id="outputs_in_any_order"),
        pytest.param({"outputs": ["nix/store"]}, id="output_at_scratch"),
        pytest.param(
            {"scratch_paths": ["a", "a-b", "a/b"], "outputs": ["a/c"]}, id="output_sorted_by_bytes"
        ),
        pytest.param({"additional_files": files("a", "a")}, id="additional_equal_neighbours"),
        pytest.param({"additional_files": [{"path": "a", "contents": b"\xff\0"}]}, id="contents"),
        pytest.param({"constraints": None}, id="no_constraints"),
        pytest.param({"constraints": constraints(available_ro_paths=["/"])}, id="ro_path_root"),
        pytest.param(
            {"constraints": constraints(available_ro_paths=["/", "/a", "/a"])},
            id="ro_paths_equal_neighbours",
        ),
        pytest.param(
            {"constraints": constraints(available_ro_paths=["/b", "/a"])},
            id="ro_paths_in_any_order",
        ),
        pytest.param({"refscan_needles": ["b", "a", "", "\0"]}, id="needles_have_no_rules"),
    ],
)
def test_accepted(fields: dict[str, Any]) -> None:
    request = read_request(build_request(**fields))

    assert list(request.scratch_paths) == fields.get("scratch_paths", ["build", "nix/store"])


@pytest.mark.parametrize(
    ("fields", "unsorted"),
    [
        # UTF-16 sorts U+10000 (d800 dc00) before U+FFEE; UTF-8 does not.
        pytest.param({"inputs": [file("\U00010000"), file("\uffee")]}, "inputs", id="inputs"),
        pytest.param(
            {"environment_vars": env(("\U00010000", b""), ("\uffee", b""))},
            "environment_vars",
            id="environment",
        ),
        pytest.param(
            {"scratch_paths": ["\U00010000", "\uffee"], "outputs": []},
            "scratch_paths",
            id="scratch",
        ),
        # By components a/b comes before a-b; by bytes it does not.
        pytest.param(
            {"scratch_paths": ["a/b", "a-b"], "outputs": []}, "scratch_paths", id="components"
        ),
        pytest.param({"scratch_paths": ["a", "B"], "outputs": []}, "scratch_paths", id="case"),
    ],
)
def test_order_is_that_of_utf8_bytes(fields: dict[str, Any], unsorted: str) -> None:
    assert [field for field, _ in violations_of(build_request(**fields))] == [unsorted]


@pytest.mark.parametrize(
    ("path", "scratch"),
    [
        pytest.param("a/out", "a", id="outermost"),
        pytest.param("a/b/out", "a/b", id="nested"),
        pytest.param("a/b-c/out", "a/b-c", id="sibling_between_them_in_bytes"),
        pytest.param("a/b/c/out", "a/b/c", id="innermost"),
        pytest.param("a/b/cc/out", "a/b", id="beside_the_innermost"),
        pytest.param("a/bb", "a", id="prefix_of_a_name"),
        pytest.param("a/b/c", "a/b/c", id="equal"),
        pytest.param("a/b-c", "a/b-c", id="equal_to_the_sibling"),
    ],
)
def test_output_belongs_to_the_nearest_scratch_path(path: str, scratch: str) -> None:
    request = build_request(scratch_paths=["a", "a/b", "a/b-c", "a/b/c"], outputs=[path])

    [output] = read_request(request).outputs

    assert (output.path, output.scratch) == (path, scratch)


# --- many at once ---------------------------------------------------------------------


def test_all_violations_at_once() -> None:
    request = BuildRequest(
        inputs=[file("b", digest=b""), Node(), link(b"a/\0", b""), file(b"\xff", digest=b"")],
        command_args=["\0", "fine", "\0"],
        working_dir="//a/./",
        scratch_paths=["z", "../y", ""],
        inputs_dir="/",
        outputs=["z/b", "y", "a//"],
        environment_vars=env(("=\0", b"\0\xff"), ("", b"")),
        constraints={"available_ro_paths": ["/b", "a/", "/a"]},
        additional_files=files("b", "a\0/.."),
    )

    assert [field for field, _ in violations_of(request)] == [
        "inputs[0].file.digest",
        "inputs[1]",
        "inputs[2].symlink.name",
        "inputs[2].symlink.name",
        "inputs[2].symlink.target",
        "inputs[3].file.name",
        "inputs[3].file.digest",
        "inputs",
        "command_args[0]",
        "command_args[2]",
        "working_dir",
        "working_dir",
        "working_dir",
        "scratch_paths[1]",
        "scratch_paths[2]",
        "scratch_paths",
        "inputs_dir",
        "inputs_dir",
        "outputs[1]",
        "outputs[2]",
        "environment_vars[0].key",
        "environment_vars[0].key",
        "environment_vars[0].value",
        "environment_vars[0].value",
        "environment_vars[1].key",
        "environment_vars",
        "constraints.system",
        "constraints.available_ro_paths[1]",
        "constraints.available_ro_paths[1]",
        "additional_files[1].path",
        "additional_files[1].path",
        "additional_files",
    ]


@pytest.mark.parametrize("count", [1, 4, 5, 50])
def test_a_broken_scratch_path_hides_no_output(count: int) -> None:
    """However many there are: an output is looked for in those that are sound."""
    scratch = [*(f"s{i:02}" for i in range(count)), "t//"]
    outputs = ["s00/out", "nowhere/out"]
    violated = violations_of(build_request(scratch_paths=scratch, outputs=outputs))
    assert [field for field, _ in violated] == [f"scratch_paths[{count}]", "outputs[1]"]


def test_all_rules_that_one_path_breaks() -> None:
    assert violations_of(build_request(working_dir="/a//../b\0/")) == [
        ("working_dir", f'{rule}, is "/a//../b\\x00/"') for rule in (LEADING, SLASH, DOTS, NUL)
    ]


def test_all_rules_that_one_node_breaks() -> None:
    assert violations_of(build_request(inputs=[link(b"/\0" * 128, b"\0" * 4096)])) == [
        ("inputs[0].symlink.name", f"{NAME_LENGTH} 256"),
        ("inputs[0].symlink.name", "must not contain a slash"),
        ("inputs[0].symlink.name", NUL),
        ("inputs[0].symlink.target", f"{TARGET_LENGTH} 4096"),
        ("inputs[0].symlink.target", NUL),
    ]


def test_all_rules_that_one_variable_breaks() -> None:
    assert violations_of(build_request(environment_vars=env(("=\0", b"\0\xff")))) == [
        ("environment_vars[0].key", 'must not contain "=", is "=\\x00"'),
        ("environment_vars[0].key", NUL),
        ("environment_vars[0].value", NUL),
        ("environment_vars[0].value", "must be UTF-8, is not at byte 1"),
    ]


def test_unsorted_and_with_a_bad_digest() -> None:
    request = build_request(inputs=[file("b"), file("a", digest=b"short")])

    assert [field for field, _ in violations_of(request)] == ["inputs[1].file.digest", "inputs"]


def test_unsorted_and_with_a_name_twice() -> None:
    request = build_request(inputs=[file("b"), file("b"), file("a")])

    assert violations_of(request) == [
        ("inputs", 'must be sorted by name, bytewise: "a" must not come after "b"'),
        ("inputs", 'must not have a name twice, have "b"'),
    ]


def test_unsorted_with_the_same_name_far_apart() -> None:
    request = build_request(inputs=[file("b"), file("a"), file("b")])

    assert violations_of(request) == [
        ("inputs", 'must be sorted by name, bytewise: "a" must not come after "b"'),
        ("inputs", 'must not have a name twice, have "b"'),
    ]


def test_index_counts_the_valid_ones_too() -> None:
    request = build_request(inputs=[file("a"), file("b"), Node(), file("c"), Node()])

    assert [field for field, _ in violations_of(request)] == ["inputs[2]", "inputs[4]"]


# --- bytes that are no request --------------------------------------------------------


def tagged(field: int, content: bytes) -> bytes:
    """Return a length-delimited field in wire form."""
    assert len(content) < 128
    return bytes([field << 3 | 2, len(content)]) + content


@pytest.mark.parametrize(
    "wire",
    [
        pytest.param(b"\xff\xff\xff", id="garbage"),
        pytest.param(build_request().SerializeToString()[:-1], id="cut_short"),
        pytest.param(tagged(2, b"\xff"), id="argument_not_utf8"),
        pytest.param(tagged(3, b"\xff"), id="working_dir_not_utf8"),
        pytest.param(tagged(4, b"\xed\xa0\x80"), id="scratch_surrogate"),
        pytest.param(tagged(8, tagged(1, b"\xff")), id="system_not_utf8"),
        pytest.param(tagged(8, b"\xff"), id="constraints_garbage"),
        pytest.param(tagged(9, tagged(1, b"\xff")), id="additional_file_not_utf8"),
        pytest.param(tagged(10, b"\xff"), id="needle_not_utf8"),
    ],
)
def test_unreadable(wire: bytes) -> None:
    with pytest.raises(UnreadableMessage) as refused:
        read_request(wire)

    assert str(refused.value) == (
        "not a tvix.build.v1.BuildRequest: the bytes do not parse, "
        "or a string field in them is not UTF-8"
    )


@pytest.mark.parametrize(
    ("element", "expected"),
    [
        pytest.param(
            tagged(1, b"\xff"),
            ("inputs[0]", "does not parse as a tvix.castore.v1.Node"),
            id="node_garbage",
        ),
        pytest.param(
            tagged(7, b"\xff"),
            ("environment_vars[0]", "does not parse as an EnvVar, or its key is not UTF-8"),
            id="variable_garbage",
        ),
        pytest.param(
            tagged(7, tagged(1, b"\xff")),
            ("environment_vars[0]", "does not parse as an EnvVar, or its key is not UTF-8"),
            id="variable_key_not_utf8",
        ),
    ],
)
def test_unreadable_element(element: bytes, expected: tuple[str, str]) -> None:
    assert violations_of(build_request().SerializeToString() + element) == [expected]


@pytest.mark.parametrize(
    "as_passed",
    [
        pytest.param(lambda request: request, id="message"),
        pytest.param(BuildRequest.SerializeToString, id="wire_form"),
    ],
)
def test_empty_request(as_passed: Any) -> None:
    assert violations_of(as_passed(BuildRequest())) == [
        ("command_args", "must name the command to run, is empty")
    ]


# --- limits of what is sent -----------------------------------------------------------


def refusal(request: BuildRequest) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        read_request(request)
    return refused.value


def test_all_that_fit_are_sent() -> None:
    status = status_of(refusal(build_request(command_args=["\0"] * 50)))

    assert len(status.violations) == 50
    assert status.message == f"50 violations, the first: command_args[0]: {NUL}"


def test_at_most_50_are_sent() -> None:
    status = status_of(refusal(build_request(command_args=["\0"] * 51)))

    assert len(status.violations) == 50
    assert status.message == (
        f"51 violations, the first: command_args[0]: {NUL} (the details hold 50, 1 more do not fit)"
    )


def test_at_most_8_kib_are_sent() -> None:
    paths = ["/" + "\U0001f600" * 300] * 50  # as ASCII escapes, longer than any other text

    status = status_of(refusal(build_request(scratch_paths=paths, outputs=[])))

    size = sum(len(v.field.encode()) + len(v.description.encode()) for v in status.violations)
    assert size <= 8 * 1024
    sent = len(status.violations)
    assert 0 < sent < 50
    assert status.message.endswith(f"(the details hold {sent}, {50 - sent} more do not fit)")


def test_one_violation_says_itself() -> None:
    status = status_of(refusal(build_request(command_args=[])))

    assert status.code.value[0] == Code.INVALID_ARGUMENT
    assert status.message == "command_args: must name the command to run, is empty"


def test_message_is_short_whatever_is_refused() -> None:
    huge = "/" + "x" * 1_000_000
    request = build_request(working_dir=huge, scratch_paths=[huge], outputs=[huge])

    status = status_of(refusal(request))

    assert len(status.message) <= 500
    assert all(len(violation.description) < 200 for violation in status.violations)


def test_message_is_short_whatever_the_violation_says() -> None:
    status = status_of(InvalidRequest([Violation("field", "x" * 5000)], 1))

    assert status.message == "field: " + "x" * (400 - len("field: "))


def test_of_very_many_the_number_is_kept() -> None:
    refused = refusal(build_request(command_args=["\0"] * 20_001))

    assert refused.total == 20_001
    assert len(refused.violations) == 10_000
    assert str(refused).endswith("\nand 10001 more violations")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("a", '"a"', id="plain"),
        pytest.param('"\n\0é', '"\\"\\n\\x00é"', id="escaped"),
        pytest.param("x" * 60, '"' + "x" * 60 + '"', id="whole"),
        pytest.param("x" * 61, '"' + "x" * 60 + '"...', id="cut"),
    ],
)
def test_quoted(text: str, shown: str) -> None:
    assert quoted(text) == shown


@pytest.mark.parametrize(
    ("text", "most", "shown"),
    [
        pytest.param("a é \U0001f600", None, "a é \U0001f600", id="printable"),
        pytest.param("a\n\x1b[2J\0", None, "a\\n\\x1b[2J\\x00", id="drives_a_terminal"),
        pytest.param("\u202ea\x85", None, "\\u202ea\\x85", id="bidirectional_and_c1"),
        pytest.param("\udcff", None, "\\udcff", id="lone_surrogate"),
        pytest.param("abcd", 4, "abcd", id="fits"),
        pytest.param("abcde", 4, "abcd...", id="cut"),
        pytest.param("abc\ne", 4, "abc\\n...", id="cut_before_it_is_escaped"),
    ],
)
def test_printable(text: str, most: int | None, shown: str) -> None:
    assert printable(text, most=most) == shown


# --- hostile sizes --------------------------------------------------------------------


def test_patterns_match_in_linear_time() -> None:
    """No pattern repeats a part without a bound, so none can backtrack for long."""
    patterns = [value for value in vars(paths_module).values() if isinstance(value, re.Pattern)]

    assert patterns
    for pattern in patterns:
        assert not re.search(r"[*+]|\{\d*,\}", re.sub(r"\\.", "", pattern.pattern))


def lines_run(function: Callable[[], object]) -> int:
    """Return how many lines of Python a call runs."""
    lines = 0

    def count(_frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    traced = sys.gettrace()
    sys.settrace(count)
    try:
        function()
    finally:
        sys.settrace(traced)
    return lines


def test_work_on_a_path_is_left_to_c() -> None:
    """Whatever its length, and though it breaks every rule, as many lines run."""

    def problems(length: int) -> list[str]:
        return paths_module.path_problems("/./" * length + "\0")

    assert len(problems(100)) == 4
    assert lines_run(lambda: problems(10_000)) == lines_run(lambda: problems(100)) > 0


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/" * 100_000, id="slashes"),
        pytest.param("../" * 100_000, id="ups"),
        pytest.param("a/" * 100_000 + ".", id="deep"),
        pytest.param("." * 100_000 + "/", id="dots"),
    ],
)
def test_long_path_is_refused_in_a_short_text(path: str) -> None:
    violated = violations_of(build_request(scratch_paths=[path], outputs=[]))

    assert {field for field, _ in violated} == {"scratch_paths[0]"}
    assert all(len(description) < 200 for _, description in violated)


def test_many_nested_scratch_paths() -> None:
    """Each output of a deep nest finds its own, the innermost."""
    nest = ["/".join(["d"] * depth) for depth in range(1, 301)]
    request = read_request(build_request(scratch_paths=nest, outputs=[f"{nest[-1]}/out"]))

    assert request.outputs[0].scratch == nest[-1]
