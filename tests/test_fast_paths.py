"""Where the hot path takes a short cut, it comes out where the plain way does."""

from __future__ import annotations

import contextlib
import operator
from itertools import islice
from typing import Any

import msgspec
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st
from support import MODES, InvalidCase, bulk_cases, invalid_cases
from test_properties import ALL_OPTIONS, DIRTY, PATHS, changed_requests, requests

from specgen.v1.specgen_pb2 import (
    Diagnostic,
    GenerateSpecsResponse,
    OutputPath,
    ScratchDir,
    SpecJSON,
    SpecResult,
)
from specgen_core import (
    InvalidRequest,
    Request,
    SpecOptions,
    UnreadableMessage,
    diagnose,
    diagnostics,
    make_spec,
    oci,
    output_path,
    read_request,
    scratch_path,
)
from specgen_core import request as request_module
from specgen_core.answer import generate_wire
from specgen_core.memo import Memo, forget_all
from specgen_core.paths import Roots, _nearest_by_sweep, all_clean, path_problems
from specgen_core.wire import delimited, head
from tvix.build.protos.build_pb2 import BuildRequest
from tvix.castore.protos.castore_pb2 import Node

# --- the answer, put together from pieces of wire form --------------------------------


def plain_answer(message: BuildRequest | bytes, options: SpecOptions) -> SpecJSON:
    """Make the answer as a message, all of it anew."""
    request = read_request(message)
    return SpecJSON(
        json=oci.encode(make_spec(request, options)).decode(),
        scratch_dirs=[
            ScratchDir(path=path, bundle_path=scratch_path(path)) for path in request.scratch_paths
        ],
        output_paths=[
            OutputPath(path=output.path, bundle_path=output_path(output))
            for output in request.outputs
        ],
        diagnostics=[
            Diagnostic(code=found.code, field=found.field, message=found.message)
            for found in diagnose(request, options)
        ],
    )


@given(requests(), st.sampled_from(ALL_OPTIONS))
def test_answer_is_the_message_serialised(request: BuildRequest, options: SpecOptions) -> None:
    assert generate_wire(request, options) == plain_answer(request, options).SerializeToString()


@pytest.mark.parametrize("mode", MODES)
def test_real_answers_are_the_messages_serialised(mode: str) -> None:
    options = SpecOptions(rootless=mode == "rootless")
    for case in bulk_cases():
        plain = plain_answer(case.request, options).SerializeToString()
        assert generate_wire(case.request, options) == plain


@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 16_383, 16_384, 2_097_151, 2_097_152])
def test_delimited_is_a_field(size: int) -> None:
    text = "x" * size

    # an empty string has no field; ours may be there, which reads as the same
    assert SpecJSON.FromString(delimited(1, text.encode())) == SpecJSON(json=text)
    if size:
        assert delimited(1, text.encode()) == SpecJSON(json=text).SerializeToString()
        spec = SpecResult(spec=SpecJSON(json=text))
        result = GenerateSpecsResponse(results=[spec])
        inner = spec.SerializeToString()
        assert head(1, len(inner)) + inner == result.SerializeToString()


# --- reading --------------------------------------------------------------------------


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_split_constraints_are_merged_as_protobuf_does(one: bytes, other: bytes) -> None:
    """A field that is not repeated may still come in parts."""
    command = BuildRequest(command_args=["true"]).SerializeToString()
    _same_constraints(command + delimited(8, one) + delimited(8, other))


@given(changed_requests(), changed_requests())
def test_constraints_of_joined_requests(one: BuildRequest, other: BuildRequest) -> None:
    parts = [
        delimited(8, request.constraints.SerializeToString())
        for request in (one, other)
        if request.HasField("constraints")
    ]
    command = BuildRequest(command_args=["true"]).SerializeToString()
    _same_constraints(b"".join([command, *parts]))


def _same_constraints(wire: bytes) -> None:
    def outcome(message: BuildRequest | bytes) -> Any:
        try:
            return read_request(message).constraints
        except InvalidRequest as invalid:
            return invalid.violations
        except ValueError as unreadable:
            return str(unreadable)

    try:
        parsed = BuildRequest.FromString(wire)
    except DecodeError:
        assert "not a tvix.build.v1.BuildRequest" in outcome(wire)
        return
    assert outcome(wire) == outcome(parsed)


@given(requests())
def test_what_is_known_of_all_inputs(request: BuildRequest) -> None:
    read = read_request(request)

    kinds = [node.WhichOneof("node") for node in request.inputs]
    assert [input_.kind for input_ in read.inputs] == kinds
    assert read.symlinks == [i for i, kind in enumerate(kinds) if kind == "symlink"]
    assert read.input_names == [input_.name for input_ in read.inputs]


@given(requests() | changed_requests())
@example(BuildRequest(command_args=["a"], inputs=[Node(symlink={"name": b"n", "target": b"t"})]))
def test_sound_requests_are_read_as_any(message: BuildRequest) -> None:
    """And the others are those with something to say of them."""
    try:
        request = read_any(message)
    except InvalidRequest:
        assert read_sound(message) is None
        return
    sound = read_sound(message)
    assert (sound is None) == bool(request.symlinks)
    if sound is not None:
        assert _all_of(sound) == _all_of(request)


@pytest.mark.parametrize("case", invalid_cases(), ids=lambda case: case.name)
def test_no_invalid_request_is_sound(case: InvalidCase) -> None:
    with contextlib.suppress(UnreadableMessage):
        assert read_sound(case.request) is None


def read_sound(message: BuildRequest | bytes) -> Request | None:
    """Read a request by the short way alone."""
    return _read_without("_read_any", message)


def read_any(message: BuildRequest | bytes) -> Request:
    """Read a request by the long way alone."""
    return _read_without("_read_sound", message)


def _read_without(way: str, message: BuildRequest | bytes) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request_module, way, lambda *_: None)
        return read_request(message)


def _all_of(request: Request) -> list[Any]:
    """Return all that is in a request; environment variables know no equality of their own."""
    fields = msgspec.structs.asdict(request)
    environment = [(env_var.key, env_var.json) for env_var in fields.pop("environment")]
    return [*fields.items(), environment]


@given(st.binary(max_size=4) | st.integers(250, 260).map(lambda size: b"n" * size))
def test_sound_names_are_those_without_problems(name: bytes) -> None:
    assert bool(request_module._SOUND_NAME(name)) == (not [*request_module._name_problems(name)])


@given(st.lists(DIRTY, max_size=4) | st.lists(PATHS, max_size=4))
def test_clean_together_if_each_is(paths: list[str]) -> None:
    assert all_clean(paths) == (not any(map(path_problems, paths)))


@given(st.lists(PATHS, max_size=4), st.lists(PATHS, max_size=6))
def test_few_roots_tried_one_by_one(roots: list[str], paths: list[str]) -> None:
    assert Roots(roots).nearest_above(paths) == _nearest_by_sweep(paths, roots)


# --- what is remembered ---------------------------------------------------------------


def test_large_keys_count_more() -> None:
    memo: Memo[str, str] = Memo(str.upper, limit=8, longest=10_000)

    for letter in "abcdefgh":
        memo[letter * 1024]  # counts five times
    assert list(memo._older) == ["e" * 1024, "f" * 1024]
    assert list(memo) == ["g" * 1024, "h" * 1024]


def test_more_keys_than_a_memo_holds_leave_it_as_it_is() -> None:
    memo: Memo[str, str] = Memo(str.upper, limit=2, longest=10)

    assert [*map(memo.over("ab"), "ab")] == ["A", "B"]
    assert [*map(memo.over("cde"), "cde")] == ["C", "D", "E"]
    assert dict(memo) == {"a": "A", "b": "B"}
    assert not memo._older


def test_a_request_of_more_inputs_than_are_remembered() -> None:
    """It gets the same spec, and the others stay known."""
    forget_all()
    small = bulk_cases()[0].request
    generate_wire(small, SpecOptions())
    known = dict(request_module._known_inputs)
    large = BuildRequest.FromString(small)
    del large.inputs[:]
    for i in range(request_module._KNOWN + 1):
        large.inputs.add(directory={"name": f"{i:05}".encode(), "digest": bytes(32)})

    plain = plain_answer(large, SpecOptions()).SerializeToString()
    assert generate_wire(large, SpecOptions()) == plain
    assert dict(request_module._known_inputs) == known


# --- diagnostics ----------------------------------------------------------------------

CHECKS = (
    diagnostics._arguments,
    diagnostics._command_path,
    diagnostics._working_dir,
    diagnostics._symlink_inputs,
    diagnostics._shadowed_scratch,
    diagnostics._late_mounts,
    diagnostics._runtime_mounts,
    diagnostics._runtime_ro_paths,
    diagnostics._private_tmp,
    diagnostics._many_mounts,
    diagnostics._long_paths,
    diagnostics._outputs,
    diagnostics._additional_files,
)

PLACES = st.sampled_from(
    ["nix/store", "nix", "tmp", "tmp/a", "proc", "sys/a", "dev/b", "bin/sh", "bin", "etc", "a"]
) | st.integers(250, 260).map(lambda size: "é" * (size // 2))


@st.composite
def odd_sandboxes(draw: st.DrawFn) -> BuildRequest:
    """Draw a valid request whose paths lie where checks look."""
    request = draw(requests())
    request.command_args[0] = draw(st.sampled_from(["/bin/sh", "sh"]))
    request.working_dir = draw(PLACES)
    request.inputs_dir = draw(PLACES | st.just(""))
    del request.outputs[:], request.scratch_paths[:]
    request.scratch_paths.extend(sorted(draw(st.sets(PLACES, max_size=3))))
    if request.scratch_paths:
        inputs = [input_.name for input_ in read_request(request).inputs]
        below = st.sampled_from(["", "/out", "/é" * 130, *(f"/{name}" for name in inputs)])
        outputs = st.builds(operator.add, st.sampled_from(request.scratch_paths), below)
        request.outputs.extend(sorted(draw(st.lists(outputs, max_size=2))))
    if draw(st.booleans()):
        request.constraints.system = "s"
        ro_paths = {f"/{path}" for path in draw(st.sets(PLACES, max_size=2))}
        request.constraints.available_ro_paths[:] = sorted(ro_paths)
        request.constraints.network_access = draw(st.booleans())
        request.constraints.provide_bin_sh = draw(st.booleans())
    return request


@given(requests() | odd_sandboxes(), st.sampled_from(ALL_OPTIONS))
def test_checks_left_out_find_nothing(message: BuildRequest, options: SpecOptions) -> None:
    request = read_request(message)

    found = list(diagnostics._of_options(options))
    for check in CHECKS:
        found += islice(check(request, options), diagnostics._MOST_OF_A_KIND)

    assert diagnose(request, options) == found
