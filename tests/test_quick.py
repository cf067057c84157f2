"""What is quick is equal: one property, and what is remembered for it."""

from __future__ import annotations

import random
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import MODES, build_request, bulk_cases, file, invalid_cases
from test_properties import changed_bytes, changed_requests, requests

from odd_requests import ALL_OPTIONS, odd_requests, plausible_requests
from specgen_core import IdMapping, InvalidRequest, SpecOptions, UnreadableMessage, generate
from specgen_server.quick import Quick
from specgen_server.quick.pieces import Pieces
from tvix.build.protos.build_pb2 import BuildRequest


def plain(wire: bytes, options: SpecOptions) -> bytes | None:
    """Return the plain answer; None where there is none."""
    try:
        return generate(wire, options).SerializeToString()
    except (InvalidRequest, UnreadableMessage):
        return None


@pytest.fixture(scope="module")
def quick() -> Quick:
    """Return one that all tests here share: what it knows of one request is used for others."""
    return Quick(generate)


@given(requests() | changed_requests() | changed_bytes(), st.sampled_from(ALL_OPTIONS))
def test_quick_is_plain(quick: Quick, message: Any, options: SpecOptions) -> None:
    wire = message if isinstance(message, bytes) else message.SerializeToString()

    assert quick(wire, options) in (None, plain(wire, options))


@pytest.mark.parametrize(
    ("source", "most_routine"),
    [
        pytest.param(odd_requests, 0.0, id="odd"),
        pytest.param(plausible_requests, 0.2, id="plausible"),
    ],
)
def test_quick_is_plain_where_rules_look(quick: Quick, source: Any, most_routine: float) -> None:
    """bench/quick_is_plain.py does the same with 100 000."""
    rng = random.Random(2)
    routine = 0
    for request in islice(source(rng), 3000):
        wire, options = request.SerializeToString(), rng.choice(ALL_OPTIONS)
        got = quick(wire, options)
        assert got is None or got == plain(wire, options), wire.hex()
        routine += got is not None

    assert routine >= 3000 * most_routine


@pytest.mark.parametrize("mode", MODES)
def test_real_requests_are_routine(quick: Quick, mode: str) -> None:
    """Of a coordinator's builds, all are but the one that has an additional file."""
    options = SpecOptions(rootless=mode == "rootless")
    others = []
    for case in bulk_cases():
        got = quick(case.request, options)
        assert got is None or got == plain(case.request, options)
        if got is None:
            others.append(BuildRequest.FromString(case.request))

    assert [len(request.additional_files) for request in others] == [1]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in invalid_cases()])
def test_invalid_requests_are_not(quick: Quick, case: Any) -> None:
    assert quick(case.request, SpecOptions()) is None


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"inputs": [file("mark-input")]}, id="input"),
        pytest.param({"command_args": ["/x", "mark-argument"]}, id="argument"),
        pytest.param({"command_args": ["/mark-argument", "mark-argument"]}, id="command"),
        pytest.param({"command_args": ["/nix/store/mark-input"]}, id="command_is_the_input"),
        pytest.param(
            {
                "inputs": [file("a")],
                "outputs": ["nix/store/a/x", "nix/store/mark-input/out"],
            },
            id="output",
        ),
        pytest.param({"environment_vars": [{"key": "mark", "value": b"variable"}]}, id="variable"),
        pytest.param({"working_dir": "mark=variable"}, id="working_dir"),
        pytest.param(
            {"constraints": {"system": "s", "available_ro_paths": ["/nix/store/mark-input"]}},
            id="ro_path",
        ),
        pytest.param(
            {"scratch_paths": ["nix/store", "nix/store/mark-input"], "outputs": []}, id="scratch"
        ),
    ],
)
def test_marks_of_its_own(quick: Quick, fields: dict[str, Any]) -> None:
    wire = build_request(**fields).SerializeToString()

    assert quick(wire, SpecOptions()) in (None, plain(wire, SpecOptions()))


@pytest.mark.parametrize(
    "command", ["/nix/store//a/sh", "/nix/./store/a/sh", "/nix/store/b/../a/sh", "//nix/store/a/sh"]
)
def test_commands_that_lead_where_they_do_not_seem_to(quick: Quick, command: str) -> None:
    inputs = [{"directory": {"name": b"a", "digest": bytes(32)}}]
    wire = build_request(inputs=inputs, command_args=[command]).SerializeToString()

    assert quick(wire, SpecOptions()) is None
    assert b"unusable-command" not in plain(wire, SpecOptions())


def test_so_many_paths_are_not_routine(quick: Quick) -> None:
    """Each may lie in each."""
    paths = [f"p{i:02}" for i in range(60)]
    constraints = {"system": "s", "available_ro_paths": [f"/h{path}" for path in paths]}
    few = build_request(scratch_paths=paths[:3], outputs=[], constraints=constraints)
    many = build_request(scratch_paths=paths, outputs=[], constraints=constraints)

    assert quick(few.SerializeToString(), SpecOptions())
    assert quick(many.SerializeToString(), SpecOptions()) is None


def test_a_directory_longer_than_can_be_is_not_routine(quick: Quick) -> None:
    """The answer would have it twice for each input."""
    request = build_request(inputs=[file("a")], inputs_dir="d" * 4096)

    assert quick(request.SerializeToString(), SpecOptions()) is None


def test_outputs_that_lie_in_inputs_are_routine(quick: Quick) -> None:
    """The findings about them hang on which those are, and on where among the outputs."""
    inputs = [file("a"), file("b"), file("c")]
    for outputs in (["nix/store/b"], ["nix/store/x", "nix/store/b/x", "nix/store/c"]):
        request = build_request(
            inputs=inputs,
            outputs=outputs,
            command_args=["/nix/store/c"],
            scratch_paths=["nix/store"],
        )
        wire = request.SerializeToString()
        answer = quick(wire, SpecOptions())
        assert answer == plain(wire, SpecOptions())
        named = [found.field for found in generate(wire, SpecOptions()).diagnostics]
        assert f"outputs[{len(outputs) - 1}]" in named


def test_an_output_that_is_a_scratch_path_in_another(quick: Quick) -> None:
    request = build_request(scratch_paths=["tmp", "tmp/x"], outputs=["tmp/x/out", "tmp/x"])
    wire = request.SerializeToString()

    assert quick(wire, SpecOptions()) in (None, plain(wire, SpecOptions()))


def test_what_the_plain_way_refuses_is_not_routine() -> None:
    def refuse(_message: Any, _options: SpecOptions) -> Any:
        raise PermissionError

    assert Quick(refuse)(build_request().SerializeToString(), SpecOptions()) is None


def test_builds_are_counted() -> None:
    counted: list[int] = []
    request = build_request(inputs=[file("a"), file("b")])

    assert Quick(generate)(request.SerializeToString(), SpecOptions(), note_build=counted.append)
    assert counted == [2]


def test_split_constraints_are_merged_as_protobuf_does(quick: Quick) -> None:
    """A field that is not repeated may still come in parts."""
    part = BuildRequest(constraints={"system": "s", "network_access": True}).SerializeToString()
    wire = build_request().SerializeToString() + part

    assert quick(wire, SpecOptions()) == plain(wire, SpecOptions()) is not None


# --- what is remembered ---------------------------------------------------------------


def pieces(*, most: int, asked: list[str] | None = None) -> Pieces[str, str]:
    def make(key: str) -> str:
        if asked is not None:
            asked.append(key)
        return f"{key}!"

    return Pieces(make, most=most, size=lambda key, value: len(key) + len(value))


@given(st.lists(st.lists(st.text("ab", max_size=3), max_size=5), max_size=20), st.integers(0, 2000))
def test_pieces_are_what_is_made(calls: list[list[str]], most: int) -> None:
    known = pieces(most=most)
    for keys in calls:
        assert [known[key] for key in keys] == [f"{key}!" for key in keys]
        assert known.held <= most


def test_pieces_are_made_once() -> None:
    asked: list[str] = []
    known = pieces(most=10_000, asked=asked)

    for key in "abacb":
        assert known[key] == f"{key}!"

    assert asked == ["a", "b", "c"]


def test_pieces_beyond_the_limit_are_made_and_not_kept() -> None:
    asked: list[str] = []
    known = pieces(most=600, asked=asked)

    assert known["x" * 1000] == "x" * 1000 + "!"
    for key in "abca":  # there is room for two: the third begins anew
        assert known[key] == f"{key}!"

    assert [key[:1] for key in asked] == ["x", "a", "b", "c", "a"]


def test_memory_is_bounded_whatever_is_asked(quick: Quick) -> None:
    """Distinct requests by the thousand leave no more than the limits say."""
    own = Quick(generate)
    for i in range(2000):
        inputs = [file(f"{i:08}-{n:04}") for n in range(9)]
        variables = [{"key": f"k{i}", "value": b"v" * 9000}]
        request = build_request(inputs=inputs, environment_vars=variables, working_dir=f"w{i}")
        own(request.SerializeToString(), SpecOptions())

    assert own.held <= 2 * 8 * 2**20 + 8 * 2**20 + 4 * 2**20


def test_options_of_callers_are_counted() -> None:
    """Each of these takes some 30 KiB."""
    own = Quick(generate)
    wire = build_request().SerializeToString()
    for i in range(400):
        mappings = tuple(IdMapping(n, 1000 * i + n, 1) for n in range(340))
        assert own(wire, SpecOptions(uid_mappings=mappings, gid_mappings=mappings))

    assert 10 < len(own._frames) < 100
