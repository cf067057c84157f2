"""What holds for any request, any options, and any bytes at all."""

from __future__ import annotations

import itertools
import json
from functools import cache
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft4Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4
from support import GOLDEN_NAMES, OCI_SCHEMA, golden_case, invalid_cases, require

from odd_requests import ALL_OPTIONS
from specgen_core import (
    InvalidRequest,
    SpecOptions,
    UnreadableMessage,
    read_request,
)
from specgen_core.answer import generate
from specgen_core.elements import read_input, read_inputs
from specgen_core.paths import nearest_above, path_problems
from specgen_core.violations import Violation, Violations
from specgen_server.rpc.call_options import METADATA_KEY, options_of_metadata
from tvix.build.protos.build_pb2 import BuildRequest
from tvix.castore.protos.castore_pb2 import Node

settings.register_profile(
    "specgen",
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("specgen")


def by_bytes(text: str) -> bytes:
    return text.encode()


# --- requests that keep the rules -----------------------------------------------------

# A few that collide, nest, and sort differently by bytes, by UTF-16 and by components.
FEW_NAMES = ["a", "b", "a-", "a.b", "...", "é", "\uffee", "\U00010000", "nix", "store", "dev"]
NAMES = st.sampled_from(FEW_NAMES) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=8
).filter(lambda name: name not in (".", ".."))
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
STRINGS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10)
DIGESTS = st.binary(min_size=32, max_size=32)


def node(name: str, kind: str, digest: bytes, target: bytes) -> Node:
    if kind == "symlink":
        return Node(symlink={"name": name.encode(), "target": target})
    return Node(**{kind: {"name": name.encode(), "digest": digest, "size": 1}})


NODES = st.builds(
    node,
    NAMES,
    st.sampled_from(["directory", "file", "symlink"]),
    DIGESTS,
    st.binary(min_size=1, max_size=8).filter(lambda target: b"\0" not in target),
)


@st.composite
def env_vars(draw: st.DrawFn) -> list[Any]:
    keys = draw(st.lists(STRINGS.filter(lambda key: key and "=" not in key), max_size=4))
    return [{"key": key, "value": draw(STRINGS).encode()} for key in sorted(keys, key=by_bytes)]


@st.composite
def requests(draw: st.DrawFn) -> BuildRequest:
    """Draw a request that keeps all rules."""
    inputs = {name_of(node): node for node in draw(st.lists(NODES, max_size=5))}
    scratch_paths = draw(st.lists(PATHS, max_size=4))
    outputs = []
    if scratch_paths:
        below = st.lists(NAMES, max_size=2)
        outputs = draw(
            st.lists(
                st.builds(
                    lambda scratch, names: "/".join([scratch, *names]),
                    st.sampled_from(scratch_paths),
                    below,
                ),
                max_size=3,
            )
        )
    return BuildRequest(
        inputs=[inputs[name] for name in sorted(inputs)],
        command_args=draw(st.lists(STRINGS, min_size=1, max_size=3)),
        working_dir=draw(st.just("") | PATHS),
        scratch_paths=sorted(scratch_paths, key=by_bytes),
        inputs_dir=draw(st.just("") | PATHS),
        outputs=outputs,
        environment_vars=draw(env_vars()),
        constraints=draw(
            st.none()
            | st.fixed_dictionaries(
                {
                    "system": STRINGS.filter(bool),
                    "available_ro_paths": st.lists(
                        st.just("/") | PATHS.map("/{}".format), max_size=3
                    ),
                    "network_access": st.booleans(),
                    "provide_bin_sh": st.booleans(),
                }
            )
        ),
        additional_files=[
            {"path": path, "contents": b"\xff"}
            for path in sorted(draw(st.lists(PATHS, max_size=2)), key=by_bytes)
        ],
        refscan_needles=draw(st.lists(STRINGS, max_size=2)),
    )


def name_of(node: Node) -> bytes:
    return getattr(node, node.WhichOneof("node")).name


# --- and others -----------------------------------------------------------------------

DIRTY = st.text(st.sampled_from("a./\0é"), max_size=6)
BREAKING_NODES = st.builds(
    lambda kind, name, digest, target: (
        Node(symlink={"name": name, "target": target})
        if kind == "symlink"
        else Node(**{kind: {"name": name, "digest": digest}})
        if kind
        else Node()
    ),
    st.sampled_from(["directory", "file", "symlink", ""]),
    st.sampled_from([b"", b".", b"..", b"...", b"a/b", b"a\0", b"\xff", b"n" * 256, b"a", b"zz"]),
    st.sampled_from([b"", b"d" * 31, b"d" * 32, b"d" * 33]),
    st.sampled_from([b"", b"t", b"\0", b"\xff", b"t" * 4095, b"t" * 4096]),
)
BREAKING_VARS = st.builds(
    lambda key, value: BuildRequest.EnvVar(key=key, value=value),
    st.sampled_from(["", "=", "a=", "\0", "a", "z"]),
    st.sampled_from([b"", b"\0", b"\xff", b"\xed\xa0\x80", b"v"]),
)
REPEATED = {
    "inputs": BREAKING_NODES,
    "command_args": st.sampled_from(["", "\0", "a"]),
    "scratch_paths": DIRTY,
    "outputs": DIRTY,
    "environment_vars": BREAKING_VARS,
    "additional_files": DIRTY.map(lambda path: BuildRequest.AdditionalFile(path=path)),
}


@st.composite
def changed_requests(draw: st.DrawFn) -> BuildRequest:
    """Draw a request of which a few parts were changed: most break rules, some do not."""
    request = draw(requests())
    for _ in range(draw(st.integers(1, 3))):
        field = draw(st.sampled_from([*REPEATED, "working_dir", "inputs_dir", "constraints"]))
        if field in REPEATED:
            elements = [*getattr(request, field), *draw(st.lists(REPEATED[field], max_size=2))]
            elements = draw(st.permutations(elements)) if draw(st.booleans()) else elements
            request.ClearField(field)
            getattr(request, field).extend(elements)
        elif field == "constraints":
            ro_paths = draw(st.lists(DIRTY | DIRTY.map("/{}".format), max_size=2))
            request.constraints.available_ro_paths.extend(ro_paths)
            request.constraints.system = draw(st.sampled_from(["", "s"]))
        else:
            setattr(request, field, draw(DIRTY))
    return request


@st.composite
def changed_bytes(draw: st.DrawFn) -> bytes:
    """Draw the wire form of a request, with a few bytes cut, changed or put in."""
    wire = draw(requests()).SerializeToString()
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(wire)))
        end = draw(st.integers(start, min(len(wire), start + 4)))
        wire = wire[:start] + draw(st.binary(max_size=4)) + wire[end:]
    return wire


# --- the rules once more, plainly -----------------------------------------------------


def broken_fields(request: BuildRequest) -> set[str]:
    """Return the fields of a request that break rules: DESIGN's list, as it stands there."""
    broken = set()

    def rule(field: str, holds: bool) -> None:
        if not holds:
            broken.add(field)

    names = []
    for i, element in enumerate(request.inputs):
        kind = element.WhichOneof("node")
        rule(f"inputs[{i}]", kind is not None)
        if kind is None:
            continue
        named = getattr(element, kind)
        rule(f"inputs[{i}].{kind}.name", is_name(named.name) and is_utf8(named.name))
        if is_utf8(named.name):
            names.append(named.name)
        if kind == "symlink":
            good = 1 <= len(named.target) <= 4095 and b"\0" not in named.target
            rule(f"inputs[{i}].symlink.target", good)
        else:
            rule(f"inputs[{i}].{kind}.digest", len(named.digest) == 32)
    rule("inputs", all(one < next_ for one, next_ in itertools.pairwise(names)))

    rule("command_args", len(request.command_args) > 0)
    for i, arg in enumerate(request.command_args):
        rule(f"command_args[{i}]", "\0" not in arg)
    rule("working_dir", request.working_dir == "" or is_clean(request.working_dir))
    rule("inputs_dir", request.inputs_dir == "" or is_clean(request.inputs_dir))

    for i, path in enumerate(request.scratch_paths):
        rule(f"scratch_paths[{i}]", is_clean(path))
    rule("scratch_paths", is_sorted(request.scratch_paths))
    for i, path in enumerate(request.outputs):
        writable = any(path == s or path.startswith(f"{s}/") for s in request.scratch_paths)
        rule(f"outputs[{i}]", is_clean(path) and writable)

    for i, variable in enumerate(request.environment_vars):
        good = variable.key != "" and "=" not in variable.key and "\0" not in variable.key
        rule(f"environment_vars[{i}].key", good)
        good = is_utf8(variable.value) and b"\0" not in variable.value
        rule(f"environment_vars[{i}].value", good)
    rule("environment_vars", is_sorted([variable.key for variable in request.environment_vars]))

    if request.HasField("constraints"):
        ro_paths = request.constraints.available_ro_paths
        rule("constraints.system", request.constraints.system != "")
        for i, path in enumerate(ro_paths):
            good = path == "/" or (path.startswith("/") and is_clean(path[1:]))
            rule(f"constraints.available_ro_paths[{i}]", good)

    for i, additional in enumerate(request.additional_files):
        rule(f"additional_files[{i}].path", is_clean(additional.path))
    rule("additional_files", is_sorted([file.path for file in request.additional_files]))
    return broken


def is_name(name: bytes) -> bool:
    return 1 <= len(name) <= 255 and name not in (b".", b"..") and not set(name) & set(b"/\0")


def is_utf8(text: bytes) -> bool:
    return text.decode(errors="ignore").encode() == text


def is_clean(path: str) -> bool:
    return "\0" not in path and all(part not in ("", ".", "..") for part in path.split("/"))


def is_sorted(texts: Any) -> bool:
    encoded = [text.encode() for text in texts]
    return encoded == sorted(encoded)


def fields_refused(message: BuildRequest | bytes) -> set[str]:
    """Return the fields that read_request names; none of a request that it accepts."""
    try:
        read_request(message)
    except InvalidRequest as refused:
        return {violation.field for violation in refused.violations}
    return set()


def comparable(fields: set[str], request: BuildRequest) -> set[str]:
    """Leave out whether outputs lie under scratch paths, where those are no paths at all."""
    if any("\0" in path for path in request.scratch_paths):
        return {field for field in fields if not field.startswith("outputs[")}
    return fields


# --- accepted or refused --------------------------------------------------------------


@given(requests())
def test_valid_request_is_accepted(request: BuildRequest) -> None:
    assert broken_fields(request) == set()
    assert fields_refused(request) == set()


@given(changed_requests())
def test_refused_where_the_plain_rules_refuse(request: BuildRequest) -> None:
    expected = broken_fields(request)

    assert comparable(fields_refused(request), request) == comparable(expected, request)
    assert bool(fields_refused(request)) is bool(expected)


ODD_NAMES = st.sampled_from(
    [b"", b".", b"..", b"...", b"a/b", b"a\0", b"\xff", b"x" * 255, b"x" * 256]
)
ODD_NODES = NODES | st.builds(
    lambda kind, name, digest: Node(**{kind: {"name": name, "digest": digest}}),
    st.sampled_from(["directory", "file"]),
    ODD_NAMES | NAMES.map(str.encode),
    st.sampled_from([bytes(32), bytes(31), b""]),
)


@given(st.lists(ODD_NODES | st.just(Node()), max_size=4))
def test_inputs_together_are_as_each_alone(nodes: list[Node]) -> None:
    together, alone = Violations(), Violations()
    read = read_inputs(nodes, together)
    each = [read_input(node, i, alone) for i, node in enumerate(nodes)]

    assert read == dict(filter(None, each))
    assert [one for one in violations(together) if one.field != "inputs"] == violations(alone)


def violations(broken: Violations) -> list[Violation]:
    try:
        broken.raise_if_any()
    except InvalidRequest as error:
        return error.violations
    return []


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in invalid_cases()])
def test_reference_cases_by_the_plain_rules(case: Any) -> None:
    request = BuildRequest.FromString(case.request)

    assert fields_refused(request) == broken_fields(request) != set()


def agrees_on_bytes(wire: bytes) -> None:
    try:
        expected = broken_fields(BuildRequest.FromString(wire))
    except DecodeError:
        with pytest.raises((InvalidRequest, UnreadableMessage)):
            read_request(wire)
        return
    assert bool(fields_refused(wire)) is bool(expected)


@given(changed_bytes())
@settings(max_examples=200)
def test_changed_bytes(wire: bytes) -> None:
    agrees_on_bytes(wire)


@given(st.binary(max_size=40))
@settings(max_examples=300)
@example(b"")
@example(b"\x0a\x00")
@example(b"\x0b\x0c")  # an input as a group
@example(b"\x08\x01")  # an input as a number
@example(b"\x42\x00\x42\x03\x0a\x01s")  # constraints in two parts
@example(b"\x0a" + b"\xff" * 9 + b"\x01")  # longer than can be
def test_any_bytes(wire: bytes) -> None:
    agrees_on_bytes(wire)


@given(requests(), requests())
def test_wire_forms_one_after_the_other(one: BuildRequest, other: BuildRequest) -> None:
    """By protobuf's rules they merge: lists grow, the last scalar wins, constraints join."""
    agrees_on_bytes(one.SerializeToString() + other.SerializeToString())


@given(
    st.text()
    | st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["rootless", "sandboxShell", "uid_mappings", "size", "terminal"])
                | st.text(max_size=3),
                inner,
                max_size=3,
            )
        ),
        max_leaves=6,
    ).map(json.dumps)
)
@settings(max_examples=200)
def test_any_options_entry(entry: str | bytes) -> None:
    try:
        options = options_of_metadata([(METADATA_KEY, entry)], SpecOptions())
    except InvalidRequest as refused:
        assert refused.violations
    else:
        assert isinstance(options, SpecOptions)


# --- what is made of accepted ones ----------------------------------------------------


@cache
def oci_schema() -> Draft4Validator:
    """Return the validator of config.json, whose parts refer to each other by file name."""
    require(OCI_SCHEMA.exists(), f"OCI schema at {OCI_SCHEMA}")
    resources = [
        (path.name, Resource(json.loads(path.read_text()), DRAFT4))
        for path in OCI_SCHEMA.parent.glob("*.json")
    ]
    schema = json.loads(OCI_SCHEMA.read_text())
    return Draft4Validator(schema, registry=Registry().with_resources(resources))


def test_the_schema_refuses_what_is_no_spec() -> None:
    spec = json.loads(generate(golden_case("plain").request, SpecOptions()).json)
    spec["linux"]["namespaces"][0]["type"] = "nonsense"
    spec["process"]["rlimits"][0]["soft"] = -1
    del spec["ociVersion"]

    errors = list(oci_schema().iter_errors(spec))

    assert len(errors) == 3


@given(requests(), st.sampled_from(ALL_OPTIONS))
def test_json_keeps_the_oci_schema(request: BuildRequest, options: SpecOptions) -> None:
    oci_schema().validate(json.loads(generate(request, options).json))


@pytest.mark.parametrize(
    "name", [name for name in GOLDEN_NAMES if not name.startswith("real_closure")]
)
def test_json_of_golden_cases_keeps_the_oci_schema(name: str) -> None:
    request = golden_case(name).request

    for options in ALL_OPTIONS:
        oci_schema().validate(json.loads(generate(request, options).json))


@given(requests(), st.sampled_from(ALL_OPTIONS))
def test_json_says_what_the_request_says(request: BuildRequest, options: SpecOptions) -> None:
    answer = generate(request, options)
    spec = json.loads(answer.json)

    assert spec["process"]["args"] == request.command_args
    assert spec["process"]["env"] == [
        f"{variable.key}={variable.value.decode()}" for variable in request.environment_vars
    ]
    assert spec["process"]["cwd"] == f"/{request.working_dir}"
    parent = f"/{request.inputs_dir}/" if request.inputs_dir else "/"
    named = {
        mount["destination"]: mount["source"]
        for mount in spec["mounts"]
        if mount["source"].startswith("inputs/")
    }
    names = [name_of(node).decode() for node in request.inputs]
    assert named == {parent + name: f"inputs/{name}" for name in names}
    assert [found.path for found in answer.scratch_dirs] == request.scratch_paths
    assert [found.path for found in answer.output_paths] == request.outputs
    for found in answer.output_paths:
        assert any(
            found.bundle_path == above.bundle_path + found.path[len(above.path) :]
            for above in answer.scratch_dirs
            if f"{found.path}/".startswith(f"{above.path}/")
        )


# --- paths ----------------------------------------------------------------------------


@given(st.lists(PATHS, max_size=8), st.lists(PATHS, max_size=8))
@settings(max_examples=200)
def test_nearest_above_by_the_plain_rule(paths: list[str], roots: list[str]) -> None:
    def plainly(path: str) -> str | None:
        above = [root for root in roots if path == root or path.startswith(f"{root}/")]
        return max(above, key=len, default=None)

    assert nearest_above(paths, roots) == [plainly(path) for path in paths]


@given(DIRTY | st.text(max_size=6))
@settings(max_examples=300)
def test_clean_by_the_plain_rule(path: str) -> None:
    assert (path_problems(path) == []) is is_clean(path)
