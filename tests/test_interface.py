"""What others build against: the protos, and the public names."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from support import TESTS

import specgen_client
import specgen_core
from specgen.v1 import specgen_pb2
from tvix.build.protos import build_pb2
from tvix.castore.protos import castore_pb2

SPECGEN = """\
file specgen/v1/specgen.proto  package specgen.v1
message specgen.v1.SpecJSON
  1 string json
  2 repeated specgen.v1.ScratchDir scratch_dirs
  3 repeated specgen.v1.OutputPath output_paths
  4 repeated specgen.v1.Diagnostic diagnostics
message specgen.v1.ScratchDir
  1 string path
  2 string bundle_path
message specgen.v1.OutputPath
  1 string path
  2 string bundle_path
message specgen.v1.Diagnostic
  1 string code
  2 string field
  3 string message
message specgen.v1.SpecOptions
  1 optional bool rootless
  2 optional string sandbox_shell
  3 optional bool terminal
  4 optional bool cgroup_namespace
  5 repeated specgen.v1.IdMapping uid_mappings
  6 repeated specgen.v1.IdMapping gid_mappings
message specgen.v1.IdMapping
  1 uint32 container_id
  2 uint32 host_id
  3 uint32 size
message specgen.v1.GenerateSpecsRequest
  1 repeated tvix.build.v1.BuildRequest requests
  2 specgen.v1.SpecOptions options
message specgen.v1.GenerateSpecsResponse
  1 repeated specgen.v1.SpecResult results
message specgen.v1.SpecResult
  1 specgen.v1.SpecJSON spec  (oneof result)
  2 specgen.v1.SpecError error  (oneof result)
message specgen.v1.SpecError
  1 int32 code
  2 string message
  3 repeated specgen.v1.FieldViolation violations
message specgen.v1.FieldViolation
  1 string field
  2 string description
"""

SERVICE = """\
GenerateSpec: tvix.build.v1.BuildRequest -> specgen.v1.SpecJSON
GenerateSpecs: stream specgen.v1.GenerateSpecsRequest -> stream specgen.v1.GenerateSpecsResponse
"""

TYPE_NAMES = {
    getattr(FieldDescriptor, name): name.removeprefix("TYPE_").lower()
    for name in dir(FieldDescriptor)
    if name.startswith("TYPE_")
}


def rendered(file: FileDescriptor) -> str:
    """List a file's messages and fields, in the order in which they stand there."""
    lines = [f"file {file.name}  package {file.package}"]
    for message in file.message_types_by_name.values():
        lines += message_lines(message)
    return "".join(f"{line}\n" for line in lines)


def message_lines(message: Descriptor) -> Iterator[str]:
    yield f"message {message.full_name}"
    for field in message.fields:
        of_message = field.message_type and field.message_type.full_name
        oneof = field.containing_oneof
        presence = "optional " if oneof and oneof.name == f"_{field.name}" else ""
        yield (
            f"  {field.number} {'repeated ' if field.is_repeated else presence}"
            f"{of_message or TYPE_NAMES[field.type]} {field.name}"
            f"{f'  (oneof {oneof.name})' if oneof and not presence else ''}"
        )
    for nested in message.nested_types:
        yield from message_lines(nested)


def test_tvix_protos() -> None:
    compiled = rendered(castore_pb2.DESCRIPTOR) + rendered(build_pb2.DESCRIPTOR)

    assert compiled == (TESTS / "tvix-protos.txt").read_text()


def test_specgen_proto() -> None:
    assert rendered(specgen_pb2.DESCRIPTOR) == SPECGEN


def test_service() -> None:
    service = specgen_pb2.DESCRIPTOR.services_by_name["SpecService"]
    methods = "".join(
        f"{method.name}: {'stream ' * method.client_streaming}{method.input_type.full_name}"
        f" -> {'stream ' * method.server_streaming}{method.output_type.full_name}\n"
        for method in service.methods
    )

    assert service.full_name == "specgen.v1.SpecService"
    assert methods == SERVICE


@pytest.mark.parametrize(
    ("module", "names"),
    [
        pytest.param(
            specgen_client,
            [
                "BundleError",
                "CallFailed",
                "DeadlineExceeded",
                "RequestRefused",
                "ServerUnavailable",
                "SpecClient",
                "SpecgenError",
                "Tls",
                "write_bundle",
            ],
            id="specgen_client",
        ),
        pytest.param(
            specgen_core,
            [
                "BUILD_GID",
                "BUILD_UID",
                "AdditionalFile",
                "Diagnostic",
                "IdMapping",
                "Input",
                "InvalidRequest",
                "Output",
                "Request",
                "SpecOptions",
                "UnreadableMessage",
                "Violation",
                "diagnose",
                "input_path",
                "least_size",
                "make_spec",
                "oci",
                "output_path",
                "read_request",
                "scratch_path",
            ],
            id="specgen_core",
        ),
    ],
)
def test_public_names(module: object, names: list[str]) -> None:
    assert module.__all__ == names
    assert all(hasattr(module, name) for name in names)


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        pytest.param("specgen_core", "grpc", id="domain_without_grpc"),
        pytest.param("specgen_core.answer", "grpc", id="generate_without_grpc"),
    ],
)
def test_imports(module: str, forbidden: str) -> None:
    program = f"import sys, {module}; print({forbidden!r} in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, text=True
    )

    assert done.stdout == "False\n"


def test_domain_does_not_read_the_message_outside_request() -> None:
    """Only request.py, and wire.py which knows no field, import protobuf."""
    spec = TESTS.parent / "core/specgen_core"
    importing = {
        path.name
        for path in spec.glob("*.py")
        if "google.protobuf" in path.read_text() or "_pb2" in path.read_text()
    }

    assert importing == {"answer.py", "request.py", "wire.py"}
