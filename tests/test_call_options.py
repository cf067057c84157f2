"""A call's options: ProtoJSON in metadata, or a message, over the server's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from support import RunningServer, build_request, running_server

from specgen.v1.specgen_pb2 import GenerateSpecsRequest
from specgen.v1.specgen_pb2 import IdMapping as IdMappingMessage
from specgen.v1.specgen_pb2 import SpecOptions as SpecOptionsMessage
from specgen.v1.specgen_pb2_grpc import SpecServiceStub
from specgen_client import RequestRefused, SpecClient
from specgen_core import IdMapping, InvalidRequest, Nofile, Resources, SpecOptions, generate
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


# --- each option, over a socket -------------------------------------------------------

MAPPING = {"container_id": 0, "host_id": 7, "size": 1}
EACH: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rootless": ({"rootless": False},) * 2,
    "sandbox_shell": ({"sandbox_shell": "/x"},) * 2,
    "terminal": ({"terminal": False},) * 2,
    "cgroup_namespace": ({"cgroup_namespace": False},) * 2,
    "uid_mappings": ({"uid_mappings": [MAPPING]}, {"uid_mappings": [IdMapping(**MAPPING)]}),
    "gid_mappings": ({"gid_mappings": [MAPPING]}, {"gid_mappings": [IdMapping(**MAPPING)]}),
    "profile": ({"profile": "nix"},) * 2,
    "nofile": ({"nofile": {"soft": 5, "hard": 9}}, {"nofile": Nofile(5, 9)}),
    "drop_capabilities": ({"drop_capabilities": True},) * 2,
    "tmp_mode": ({"tmp_mode": "1777"},) * 2,
    "devices": ({"devices": ["/dev/kvm", "/dev/x:b:8:16:r"]},) * 2,
    "device_rules": ({"device_rules": "none"},) * 2,
    "resources": (
        {"resources": {"memory_bytes": 4096, "cpu_quota_us": 1000, "pids": 7}},
        {"resources": Resources(memory_bytes=4096, cpu_quota_us=1000, pids=7)},
    ),
    "cgroups_path": ({"cgroups_path": "/x"},) * 2,
    "seccomp": ({"seccomp": "nix"},) * 2,
    "personality": ({"personality": "system"},) * 2,
    "skeleton": ({"skeleton": True},) * 2,
}
"""The fields of the message, and what the core takes for them."""

REQUEST = build_request(
    constraints={
        "system": "i686-linux",
        "provide_bin_sh": True,
        "available_ro_paths": ["/dev/kvm", "/dev/x"],
    }
)


def message(fields: dict[str, Any]) -> SpecOptionsMessage:
    return json_format.ParseDict(fields, SpecOptionsMessage())


def entry_of(fields: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return ((METADATA_KEY, json_format.MessageToJson(message(fields), indent=None)),)


def bulk(channel: grpc.Channel, options: SpecOptionsMessage) -> Any:
    """Return the result of one build in a bulk call."""
    asked = GenerateSpecsRequest(requests=[REQUEST], options=options)
    [response] = SpecServiceStub(channel).GenerateSpecs(iter([asked]), timeout=10)
    [result] = response.results
    return result


def test_each_field_is_here() -> None:
    assert list(EACH) == [field.name for field in SpecOptionsMessage.DESCRIPTOR.fields]


@pytest.mark.parametrize("name", EACH)
def test_each_field_arrives(channel: grpc.Channel, name: str) -> None:
    fields, own = EACH[name]
    expected = generate(REQUEST, SpecOptions().override(**own))
    assert expected != generate(REQUEST, SpecOptions())

    by_entry = SpecServiceStub(channel).GenerateSpec(REQUEST, timeout=10, metadata=entry_of(fields))

    assert by_entry == expected
    assert bulk(channel, message(fields)).spec == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"profile": "guix"}, ["options.profile"], id="profile"),
        pytest.param({"nofile": {"soft": 9, "hard": 5}}, ["options.nofile.soft"], id="soft"),
        pytest.param({"nofile": {"hard": 2**31}}, ["options.nofile.hard"], id="hard"),
        pytest.param({"tmp_mode": "rwx"}, ["options.tmp_mode"], id="tmp_mode"),
        pytest.param({"tmp_mode": ""}, ["options.tmp_mode"], id="tmp_mode_empty"),
        pytest.param(
            {"devices": ["/dev/kvm", "/dev/none", "kvm:c:1:2:rw"]},
            ["options.devices[1]", "options.devices[2]"],
            id="devices",
        ),
        pytest.param({"devices": ["/dev/kvm"] * 101}, ["options.devices"], id="too_many_devices"),
        pytest.param({"device_rules": "allow"}, ["options.device_rules"], id="device_rules"),
        pytest.param(
            {"resources": {"memory_bytes": 1}}, ["options.resources.memory_bytes"], id="memory"
        ),
        pytest.param(
            {"resources": {"cpu_quota_us": 1, "cpu_period_us": 1}},
            ["options.resources.cpu_quota_us", "options.resources.cpu_period_us"],
            id="cpu",
        ),
        pytest.param({"resources": {"pids": 2**63}}, ["options.resources.pids"], id="pids"),
        pytest.param({"cgroups_path": "/a/../b"}, ["options.cgroups_path"], id="cgroups_path"),
        pytest.param({"seccomp": ""}, ["options.seccomp"], id="seccomp"),
        pytest.param({"personality": "x86"}, ["options.personality"], id="personality"),
        pytest.param(
            {"seccomp": "x", "nofile": {"soft": 1}},
            ["options.nofile.soft", "options.seccomp"],
            id="all_at_once",
        ),
    ],
)
def test_each_error_names_its_field(
    client: SpecClient, channel: grpc.Channel, fields: dict[str, Any], expected: list[str]
) -> None:
    with pytest.raises(RequestRefused) as refused:
        client.generate(REQUEST, options=message(fields))
    in_bulk = bulk(channel, message(fields)).error

    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in refused.value.violations] == expected
    assert in_bulk.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert [violation.field for violation in in_bulk.violations] == expected


@pytest.fixture
def client(server: RunningServer) -> Iterator[SpecClient]:
    with SpecClient(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpecClient]:
    """Return a client of a server whose options no call may change."""
    log = tmp_path_factory.mktemp("strict") / "log"
    flags = ("--workers", "1", "--no-option-overrides")
    with (
        running_server("127.0.0.1:0", log, *flags) as server,
        SpecClient(server.address) as client,
    ):
        yield client


@pytest.mark.parametrize("name", EACH)
def test_no_option_overrides_refuses_each(strict: SpecClient, name: str) -> None:
    options = message(EACH[name][0])

    with pytest.raises(RequestRefused) as refused:
        strict.generate(REQUEST, options=options)
    [in_bulk] = strict.generate_many([REQUEST], options=options)

    assert isinstance(in_bulk, RequestRefused)
    assert refused.value.code is in_bulk.code is grpc.StatusCode.PERMISSION_DENIED
