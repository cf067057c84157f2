"""What others build against: the protos, and the public names."""

from __future__ import annotations

import ast
import importlib
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from support import TESTS

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
  5 repeated specgen.v1.AdditionalFilePath additional_files
  6 repeated specgen.v1.RootEntry root_entries
message specgen.v1.ScratchDir
  1 string path
  2 string bundle_path
message specgen.v1.OutputPath
  1 string path
  2 string bundle_path
message specgen.v1.AdditionalFilePath
  1 string path
  2 string bundle_path
message specgen.v1.RootEntry
  1 string bundle_path
  2 uint32 mode
  3 string kind
  4 bytes contents
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
  7 optional string profile
  8 specgen.v1.Nofile nofile
  9 optional bool drop_capabilities
  10 optional string tmp_mode
  11 repeated string devices
  12 optional string device_rules
  13 specgen.v1.Resources resources
  14 optional string cgroups_path
  15 optional string seccomp
  16 optional string personality
  17 optional bool skeleton
message specgen.v1.Nofile
  1 uint64 soft
  2 uint64 hard
message specgen.v1.Resources
  1 uint64 memory_bytes
  2 uint64 cpu_quota_us
  3 uint64 cpu_period_us
  4 uint64 pids
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


PACKAGES = ["specgen_core", "specgen_client"]


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names(package: str) -> None:
    """``__all__`` is sorted, and is all that the package takes from its modules."""
    module = importlib.import_module(package)
    taken = {
        alias.asname or alias.name
        for node in ast.parse(Path(str(module.__file__)).read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert module.__all__ == sorted(module.__all__, key=_as_ruff_sorts)
    assert set(module.__all__) == taken


def _as_ruff_sorts(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


# --- imports go as the arrows do ------------------------------------------------------


def _imports(path: Path) -> set[str]:
    """Return the full names of the modules that a file imports."""
    package = path.relative_to(_source_root(path)).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


ROOT = TESTS.parent
SOURCES = {
    package: sorted((ROOT / root / package).rglob("*.py"))
    for root, package in (
        ("core", "specgen_core"),
        ("core", "specgen_commands"),
        ("server", "specgen_server"),
        ("client", "specgen_client"),
    )
}


def _source_root(path: Path) -> Path:
    return ROOT / path.relative_to(ROOT).parts[0]


def _importing(package: str, *forbidden: str) -> dict[str, list[str]]:
    """Return which files of a package import any of these, or what is in them."""
    found = {}
    for path in SOURCES[package]:
        bad = sorted(
            name
            for name in _imports(path)
            if any(f"{name}.".startswith(f"{f}.") for f in forbidden)
        )
        if bad:
            found[str(path.relative_to(ROOT))] = bad
    return found


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        pytest.param("specgen_core", ["specgen_commands", "specgen_server", "specgen_client"]),
        pytest.param("specgen_commands", ["specgen_server", "specgen_client"]),
        pytest.param("specgen_server", ["specgen_client"]),
        pytest.param("specgen_client", ["specgen_server"]),
    ],
)
def test_imports_go_as_the_arrows(package: str, forbidden: list[str]) -> None:
    assert SOURCES[package]
    assert _importing(package, *forbidden) == {}


IO = [
    *("grpc", "os", "io", "pathlib", "socket", "subprocess", "tempfile", "shutil", "logging"),
    *("threading", "time", "random", "sys", "click"),
]


def test_core_does_no_io() -> None:
    assert _importing("specgen_core", *IO) == {}
    for path in SOURCES["specgen_core"]:
        called = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert called.isdisjoint({"open", "print", "input", "exec", "eval"}), path


def test_quick_is_imported_by_one_room() -> None:
    quick = "server/specgen_server/quick/"
    others = [
        path
        for path in _importing("specgen_server", "specgen_server.quick")
        if not path.startswith(quick)
    ]

    assert others == ["server/specgen_server/rpc/service.py"]


def test_only_reading_reads_the_request() -> None:
    """elements.py is part of it, and answer.py passes it on."""
    request = "tvix.build.protos.build_pb2"

    assert sorted(_importing("specgen_core", request)) == [
        "core/specgen_core/answer.py",
        "core/specgen_core/elements.py",
        "core/specgen_core/reading.py",
    ]


def test_core_is_loaded_without_grpc() -> None:
    program = "import sys, specgen_core; print('grpc' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, text=True
    )

    assert done.stdout == "False\n"


def test_no_module_is_long() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (*itertools.chain(*SOURCES.values()), *sorted((ROOT / "bench").glob("*.py")))
        if (lines := len(path.read_text().splitlines())) > 400
    }

    assert long == {}
