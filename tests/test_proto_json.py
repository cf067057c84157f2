"""Requests in ProtoJSON: what they are read as, and what is refused, with the field."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from google.protobuf import json_format

from specgen_client.proto_json import request_from_json
from tvix.build.protos.build_pb2 import BuildRequest


def env(value: Any) -> str:
    return json.dumps({"environment_vars": [{"key": "A", "value": value}]})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("aGVsbG8=", b"hello", id="padded"),
        pytest.param("aGVsbG8", b"hello", id="not_padded"),
        pytest.param("aA==", b"h", id="padded_twice"),
        pytest.param("", b"", id="empty"),
        pytest.param("P/8/+w==", b"?\xff?\xfb", id="standard_alphabet"),
        pytest.param("P_8_-w==", b"?\xff?\xfb", id="urlsafe_alphabet"),
        pytest.param("P_8_-w", b"?\xff?\xfb", id="urlsafe_not_padded"),
        pytest.param(None, b"", id="null"),
    ],
)
def test_bytes(text: str | None, value: bytes) -> None:
    """Without a warning, which a test would fail on: Python 3.15 warns of + and /."""
    assert request_from_json(env(text)).environment_vars[0].value == value


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("{}", id="json"),
        pytest.param("hello", id="word"),
        pytest.param("315532800", id="number"),
        pytest.param("$out/bin", id="variable"),
        pytest.param("b3:ZGRk", id="prefixed"),
        pytest.param("aGVs\nbG8=", id="newline"),
        pytest.param("aGVs bG8=", id="blank"),
        pytest.param("aGVsbG8==", id="padded_too_much"),
        pytest.param("aGVsbA=", id="padded_too_little"),
        pytest.param("aGVs====", id="padded_for_nothing"),
        pytest.param("aG=sbG8=", id="padding_inside"),
        pytest.param("=", id="padding_alone"),
        pytest.param("P/8_", id="both_alphabets"),
        pytest.param("aGVsbG8=\n", id="last_newline"),
        pytest.param("àbcd", id="not_ascii"),
        pytest.param("\ud800", id="surrogate"),
        pytest.param("\u0661234", id="other_digits"),
    ],
)
@pytest.mark.parametrize("spelled", ["value", "VALUE"])
def test_no_base64(text: str, spelled: str) -> None:
    if spelled == "VALUE":
        source, field = (
            {"additionalFiles": [{}, {"contents": text}]},
            "additional_files[1].contents",
        )
    else:
        source = {"environment_vars": [{"key": "A", "value": text}]}
        field = "environment_vars[0].value"
    with pytest.raises(json_format.ParseError) as refused:
        request_from_json(json.dumps(source))
    assert str(refused.value) == (
        f"{field}: bytes are base64 in JSON, and {json.dumps(text)} is not base64"
    )


@pytest.mark.parametrize("value", [5, 1.5, True, [], {}, ["aA=="]], ids=json.dumps)
def test_bytes_that_are_no_text(value: Any) -> None:
    said = r"environment_vars(\[0\]\.value(\[0\])?: bytes are base64 text|.*value field)"
    with pytest.raises(json_format.ParseError, match=said):
        request_from_json(env(value))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(
            '{"command_args": ["a"], "command_args": ["b"]}',
            "command_args is given twice in one object",
            id="same_key",
        ),
        pytest.param(
            '{"command_args": ["a"], "commandArgs": ["b"]}',
            "command_args is given twice, as command_args and as commandArgs",
            id="two_spellings",
        ),
        pytest.param(
            '{"constraints": {"min_memory": 1, "minMemory": 1}}',
            "constraints.min_memory is given twice, as min_memory and as minMemory",
            id="nested",
        ),
        pytest.param(
            '{"inputs": [{}, {"file": {"name": "aA==", "name": "aQ=="}}]}',
            "name is given twice in one object",
            id="deep",
        ),
        pytest.param(
            '{"constraints": {"min_memory": NaN}}',
            "constraints.min_memory: nan is no number in JSON",
            id="nan",
        ),
        pytest.param(
            '{"constraints": {"minMemory": -1e999}}',
            "constraints.min_memory: -inf is no number in JSON",
            id="infinity",
        ),
    ],
)
def test_refused(text: str, said: str) -> None:
    with pytest.raises(json_format.ParseError) as refused:
        request_from_json(text)
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param('{"constraints": {"min_memory": -1}}', "min_memory", id="negative"),
        pytest.param('{"constraints": {"min_memory": 1.5}}', "min_memory", id="fraction"),
        pytest.param('{"constraints": {"min_memory": 1e30}}', "min_memory", id="too_large"),
        pytest.param('{"constraints": {"network_access": "yes"}}', "network_access", id="no_bool"),
        pytest.param('{"command_args": "/bin/sh -c true"}', "command_args", id="text_for_list"),
        pytest.param('{"command_args": [null]}', "command_args[0]", id="null_in_list"),
        pytest.param('{"command_args": [5]}', "command_args[0]", id="number_in_list"),
        pytest.param('{"command_args": ["\\ud800"]}', "command_args[0]", id="surrogate"),
        pytest.param('{"environment_vars": {"A": "Yg=="}}', "environment_vars", id="object"),
        pytest.param('{"environment_vars": ["A"]}', "environment_vars[0]", id="text_for_object"),
        pytest.param('{"inputs": [{"file": []}]}', "inputs[0].file", id="list_for_object"),
        pytest.param('{"command_arg": ["/bin/sh"]}', "command_arg", id="unknown"),
        pytest.param('{"inputs": [{"file": {"hash": ""}}]}', "hash", id="unknown_in_input"),
    ],
)
def test_what_protobuf_refuses_names_the_field(text: str, named: str) -> None:
    with pytest.raises(json_format.ParseError, match=re.escape(named)):
        request_from_json(text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("[]", id="list"),
        pytest.param("\ufeff{}", id="bom"),
        pytest.param("{} {}", id="trailing"),
        pytest.param("{ // x\n}", id="comment"),
        pytest.param("{'a': 1}", id="single_quotes"),
        pytest.param('{"working_dir": "a\tb"}', id="control_character"),
        pytest.param('{"constraints": {"min_memory": ' + "9" * 5000 + "}}", id="many_digits"),
        pytest.param('{"a": ' + "[" * 100_000, id="deep"),
    ],
)
def test_no_json(text: str) -> None:
    with pytest.raises(json_format.ParseError):
        request_from_json(text)


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        pytest.param("{}", BuildRequest(), id="nothing"),
        pytest.param(
            '{"commandArgs": ["/bin/sh"], "working_dir": "build"}',
            BuildRequest(command_args=["/bin/sh"], working_dir="build"),
            id="both_spellings_of_two_fields",
        ),
        pytest.param(
            '{"constraints": {"min_memory": "1500000000"}}',
            BuildRequest(constraints={"min_memory": 1_500_000_000}),
            id="number_as_text",
        ),
        pytest.param(
            '{"constraints": {"min_memory": 1.5e9}}',
            BuildRequest(constraints={"min_memory": 1_500_000_000}),
            id="number_with_exponent",
        ),
        pytest.param('{"constraints": null, "inputs": null}', BuildRequest(), id="nulls"),
        pytest.param(
            '{"command_args": ["\\ud83d\\ude00"]}', BuildRequest(command_args=["😀"]), id="pair"
        ),
    ],
)
def test_taken(text: str, request_: BuildRequest) -> None:
    assert request_from_json(text) == request_
