"""What a person with grpcurl can do, without any proto file; and reflection itself."""

from __future__ import annotations

import json
import subprocess

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status
from grpc_reflection.v1alpha.reflection_pb2 import (
    ServerReflectionRequest,
    ServerReflectionResponse,
)
from support import RunningServer, build_request, golden_case, require_program

from specgen.v1 import specgen_pb2
from specgen_core import SpecOptions
from specgen_core.answer import generate
from tvix.build.protos.build_pb2 import BuildRequest

SERVICES = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "specgen.v1.SpecService",
]


def grpcurl(
    server: RunningServer,
    *args: str,
    flags: tuple[str, ...] = (),
    message: BuildRequest | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run grpcurl against the server; a message goes in as ProtoJSON."""
    data = ("-d", "@") if message is not None else ()
    return subprocess.run(
        [require_program("grpcurl"), "-plaintext", *flags, *data, server.address, *args],
        input=json_format.MessageToJson(message) if message is not None else "",
        capture_output=True,
        text=True,
        timeout=30,
    )


def answered(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_list(server: RunningServer) -> None:
    assert answered(grpcurl(server, "list")).splitlines() == SERVICES


def test_list_methods(server: RunningServer) -> None:
    assert answered(grpcurl(server, "list", "specgen.v1.SpecService")).splitlines() == [
        "specgen.v1.SpecService.GenerateSpec",
        "specgen.v1.SpecService.GenerateSpecs",
    ]


def test_describe_everything(server: RunningServer) -> None:
    described = answered(grpcurl(server, "describe"))

    assert [line for line in described.splitlines() if line.endswith(" is a service:")] == [
        f"{name} is a service:" for name in SERVICES
    ]


def test_describe_service(server: RunningServer) -> None:
    described = answered(grpcurl(server, "describe", "specgen.v1.SpecService"))

    assert described.splitlines() == [
        "specgen.v1.SpecService is a service:",
        "service SpecService {",
        "  rpc GenerateSpec ( .tvix.build.v1.BuildRequest ) returns ( .specgen.v1.SpecJSON );",
        "  rpc GenerateSpecs ( stream .specgen.v1.GenerateSpecsRequest )"
        " returns ( stream .specgen.v1.GenerateSpecsResponse );",
        "}",
    ]


def test_describe_method(server: RunningServer) -> None:
    described = answered(grpcurl(server, "describe", "specgen.v1.SpecService.GenerateSpec"))

    assert described.splitlines() == [
        "specgen.v1.SpecService.GenerateSpec is a method:",
        "rpc GenerateSpec ( .tvix.build.v1.BuildRequest ) returns ( .specgen.v1.SpecJSON );",
    ]


@pytest.mark.parametrize(
    ("message", "line"),
    [
        pytest.param(
            "tvix.build.v1.BuildRequest",
            "  repeated .tvix.castore.v1.Node inputs = 1;",
            id="build_request",
        ),
        pytest.param("tvix.castore.v1.Node", "  oneof node {", id="node"),
        pytest.param("specgen.v1.SpecOptions", "  optional bool rootless = 1;", id="spec_options"),
    ],
)
def test_describe_message(server: RunningServer, message: str, line: str) -> None:
    described = answered(grpcurl(server, "describe", message)).splitlines()

    assert described[0] == f"{message} is a message:"
    assert line in described


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        pytest.param((), SpecOptions(), id="defaults"),
        pytest.param(
            ("-H", 'specgen-options: {"rootless": false}'),
            SpecOptions(rootless=False),
            id="rootful_by_metadata",
        ),
    ],
)
@pytest.mark.parametrize("name", ["three_node_kinds", "real_stdenv"])
def test_generate_spec(
    server: RunningServer, name: str, flags: tuple[str, ...], options: SpecOptions
) -> None:
    request = golden_case(name).request

    done = grpcurl(server, "specgen.v1.SpecService/GenerateSpec", flags=flags, message=request)

    answer = json_format.Parse(answered(done), specgen_pb2.SpecJSON())
    assert answer == generate(request, options)


def test_error_details(server: RunningServer) -> None:
    done = grpcurl(
        server,
        "specgen.v1.SpecService/GenerateSpec",
        flags=("-format-error",),
        message=build_request(command_args=[], working_dir="a/"),
    )

    # grpcurl exits with 64 and the code, and shows the status as the server sent it
    assert (done.returncode, done.stdout) == (64 + grpc.StatusCode.INVALID_ARGUMENT.value[0], "")
    status = json_format.Parse(done.stderr, Status())
    assert (status.code, status.message) == (
        grpc.StatusCode.INVALID_ARGUMENT.value[0],
        "2 violations, the first: command_args: must name the command to run, is empty",
    )
    bad_request = BadRequest()
    [detail] = status.details
    assert detail.Unpack(bad_request)
    assert [(v.field, v.description) for v in bad_request.field_violations] == [
        ("command_args", "must name the command to run, is empty"),
        ("working_dir", 'must not have a doubled or trailing slash, is "a/"'),
    ]


def test_generate_specs(server: RunningServer) -> None:
    good, bad = build_request(), build_request(command_args=[])
    chunk = specgen_pb2.GenerateSpecsRequest(requests=[good, bad])

    done = grpcurl(server, "specgen.v1.SpecService/GenerateSpecs", message=chunk)

    [spec, refused] = json.loads(answered(done))["results"]
    assert spec["spec"]["json"] == generate(good, SpecOptions()).json
    assert refused["error"]["violations"] == [
        {"field": "command_args", "description": "must name the command to run, is empty"}
    ]


@pytest.mark.parametrize("service", ["", "specgen.v1.SpecService"], ids=["server", "service"])
def test_health(server: RunningServer, service: str) -> None:
    done = grpcurl(
        server,
        "grpc.health.v1.Health/Check",
        flags=("-d", json.dumps({"service": service})),
    )

    assert json.loads(answered(done)) == {"status": "SERVING"}


def test_health_of_nothing(server: RunningServer) -> None:
    done = grpcurl(
        server,
        "grpc.health.v1.Health/Check",
        flags=("-d", '{"service": "nonsense"}'),
    )

    assert done.returncode == 64 + grpc.StatusCode.NOT_FOUND.value[0]


# --- reflection, under both names -----------------------------------------------------


@pytest.fixture(params=["grpc.reflection.v1", "grpc.reflection.v1alpha"])
def reflect(request: pytest.FixtureRequest, channel: grpc.Channel):
    """Return a function that asks the server's reflection."""
    call = channel.stream_stream(
        f"/{request.param}.ServerReflection/ServerReflectionInfo",
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=ServerReflectionResponse.FromString,
    )

    def ask(**question: str) -> ServerReflectionResponse:
        [answer] = call(iter([ServerReflectionRequest(**question)]), timeout=20)
        return answer

    return ask


def test_reflected_services(reflect) -> None:
    services = reflect(list_services="*").list_services_response.service

    assert sorted(service.name for service in services) == SERVICES


@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        pytest.param("specgen.v1.SpecService", "specgen/v1/specgen.proto", id="service"),
        pytest.param(
            "specgen.v1.SpecService.GenerateSpec", "specgen/v1/specgen.proto", id="method"
        ),
        pytest.param("tvix.build.v1.BuildRequest", "tvix/build/protos/build.proto", id="message"),
        pytest.param(
            "grpc.reflection.v1.ServerReflection",
            "grpc/reflection/v1/reflection.proto",
            id="reflection_itself",
        ),
        pytest.param("grpc.health.v1.Health", "grpc_health/v1/health.proto", id="health"),
    ],
)
def test_reflected_symbol(reflect, symbol: str, file: str) -> None:
    answer = reflect(file_containing_symbol=symbol)

    files = answer.file_descriptor_response.file_descriptor_proto
    assert file in [FileDescriptorProto.FromString(found).name for found in files]


def test_reflected_dependency(reflect) -> None:
    answer = reflect(file_by_filename="tvix/castore/protos/castore.proto")

    [file] = answer.file_descriptor_response.file_descriptor_proto
    assert FileDescriptorProto.FromString(file).package == "tvix.castore.v1"


def test_reflected_nonsense(reflect) -> None:
    answer = reflect(file_containing_symbol="nonsense.Nonsense")

    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
