"""A call's options: ProtoJSON in metadata, or a message, over the server's own."""

from __future__ import annotations

import grpc
import pytest
from support import build_request

from specgen.v1.specgen_pb2 import IdMapping as IdMappingMessage
from specgen.v1.specgen_pb2 import SpecOptions as SpecOptionsMessage
from specgen.v1.specgen_pb2_grpc import SpecServiceStub
from specgen_core import IdMapping, InvalidRequest, SpecOptions
from specgen_server.rpc.call_options import METADATA_KEY, options_of_message, options_of_metadata

OWN = SpecOptions(sandbox_shell="/own", terminal=False, uid_mappings=(IdMapping(0, 7, 1),))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        pytest.param(SpecOptionsMessage(), OWN, id="nothing_set"),
        pytest.param(SpecOptionsMessage(rootless=True, terminal=False), OWN, id="set_to_the_same"),
        pytest.param(
            SpecOptionsMessage(terminal=True),
            SpecOptions(sandbox_shell="/own", uid_mappings=(IdMapping(0, 7, 1),)),
            id="terminal",
        ),
        pytest.param(
            SpecOptionsMessage(uid_mappings=[IdMappingMessage(host_id=1, size=2)]),
            SpecOptions(sandbox_shell="/own", terminal=False, uid_mappings=(IdMapping(0, 1, 2),)),
            id="mappings",
        ),
        pytest.param(
            SpecOptionsMessage(rootless=False),
            SpecOptions(rootless=False, sandbox_shell="/own", terminal=False),
            id="rootful",
        ),
    ],
)
def test_message(message: SpecOptionsMessage, expected: SpecOptions) -> None:
    assert options_of_message(message, OWN) == expected


def test_message_that_cannot_be() -> None:
    with pytest.raises(InvalidRequest) as refused:
        options_of_message(SpecOptionsMessage(sandbox_shell=""), OWN)

    assert [v.field for v in refused.value.violations] == ["options.sandbox_shell"]


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        pytest.param([], OWN, id="none"),
        pytest.param(
            [("user-agent", "x"), ("x-request-id", "y"), ("specgen-client", "z"), ("options", "")],
            OWN,
            id="others",
        ),
        pytest.param(
            [("a", "b"), (METADATA_KEY, '{"sandboxShell": "/x"}'), ("c", "d")],
            SpecOptions(sandbox_shell="/x", terminal=False, uid_mappings=(IdMapping(0, 7, 1),)),
            id="one_among_others",
        ),
    ],
)
def test_metadata(metadata: list[tuple[str, str | bytes]], expected: SpecOptions) -> None:
    assert options_of_metadata(metadata, OWN) == expected


def test_same_entry_over_other_defaults() -> None:
    """Entries are remembered, but with the options that they override."""
    entry = [(METADATA_KEY, '{"rootless": false}')]

    assert options_of_metadata(entry, OWN).sandbox_shell == "/own"
    assert options_of_metadata(entry, SpecOptions()).sandbox_shell == "/bin/sh"


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("x", id="no_json"),
        pytest.param("1", id="number"),
        pytest.param("null", id="null"),
        pytest.param('"rootless"', id="string"),
        pytest.param('{"rootless": 1}', id="number_for_bool"),
        pytest.param('{"rootless": true, "rootless": false}', id="key_twice"),
        pytest.param('{"uid_mappings": [{"size": -1}]}', id="negative"),
        pytest.param('{"uid_mappings": [{"size": 1e400}]}', id="infinite"),
        pytest.param('{"uid_mappings": [{"size": ' + "1" * 5000 + "}]}", id="5000_digits"),
        pytest.param('{"uid_mappings": ' + "[" * 8000, id="deep"),
        pytest.param(b"\xff", id="bytes"),
    ],
)
def test_unreadable_metadata(value: str | bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        options_of_metadata([(METADATA_KEY, value)], OWN)

    [violation] = refused.value.violations
    assert violation.field == "specgen-options"
    assert violation.description.startswith("must be specgen.v1.SpecOptions as ProtoJSON")


@pytest.mark.parametrize(
    "key",
    [
        "specgen_options",
        "specgen-option",
        "specgenoptions",
        "spec-gen-options",
        "Specgen-Options",
        "specgen-opts",
        "specgn-options",
        "x-specgen-options",
        "specgen-options-bin",
        "specgen.options",
        "spec-options",
    ],
)
def test_an_entry_with_nearly_this_name_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        options_of_metadata([("user-agent", "x"), (key, '{"rootless": false}')], OWN)

    [violation] = refused.value.violations
    assert violation.field == "specgen-options"
    assert violation.description == f"is the name of the entry with options: {key} is not"


def entry(size: int) -> str:
    return '{"sandbox_shell": "/own"' + " " * (size - 25) + "}"


def test_the_longest_entry() -> None:
    assert options_of_metadata([(METADATA_KEY, entry(8192))], OWN) == OWN


def test_a_longer_entry() -> None:
    with pytest.raises(InvalidRequest) as refused:
        options_of_metadata([(METADATA_KEY, entry(8193))], OWN)

    [violation] = refused.value.violations
    assert violation.description == (
        "has 8193 bytes, and may have 8192: give long options in a bulk call's message, "
        "or to the server"
    )


@pytest.mark.parametrize(
    ("size", "code"),
    [
        pytest.param(8192, None, id="longest"),
        pytest.param(8193, grpc.StatusCode.INVALID_ARGUMENT, id="longer"),
        pytest.param(30_000, grpc.StatusCode.INVALID_ARGUMENT, id="much_longer"),
    ],
)
def test_its_size_over_a_socket(
    channel: grpc.Channel, size: int, code: grpc.StatusCode | None
) -> None:
    """gRPC itself would refuse some of these, now and then."""
    stub = SpecServiceStub(channel)
    for _ in range(30):
        metadata = ((METADATA_KEY, entry(size)),)
        if code is None:
            assert stub.GenerateSpec(build_request(), timeout=10, metadata=metadata).json
            continue
        with pytest.raises(grpc.RpcError) as refused:
            stub.GenerateSpec(build_request(), timeout=10, metadata=metadata)
        assert refused.value.code() is code
        assert refused.value.details().startswith(f"specgen-options: has {size} bytes")
