"""The memory that docs/operations.md tells operators to allow, and what calls really take."""

from __future__ import annotations

import re
import shlex
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import yaml
from support import RunningServer, build_request, file, running_server

from specgen.v1.specgen_pb2 import GenerateSpecsRequest
from specgen_server.process.cli import main as specgen_server
from specgen_server.rpc.service import SpecService
from specgen_server.telemetry.stats import CallRecord
from tvix.build.protos.build_pb2 import BuildRequest

ROOT = Path(__file__).parent.parent
MIB = 1024 * 1024


def _rule() -> tuple[int, int, int]:
    """Return the numbers of the rule: at rest, times a message, times each waiting call."""
    rule = re.search(
        r"^ +(\d+) MiB \+ max-message-bytes"
        r" x \((\d+) \+ (\d+) x \(max-in-flight \+ max-streams\)\)$",
        (ROOT / "docs/operations.md").read_text(),
        re.MULTILINE,
    )
    assert rule
    at_rest, answering, waiting = map(int, rule.groups())
    return at_rest * MIB, answering, waiting


AT_REST, ANSWERING, WAITING = _rule()


def _needed(arguments: list[str]) -> int:
    """Return the bytes that a server with these flags must be allowed."""
    values = specgen_server.make_context("specgen-server", list(arguments)).params
    calls = values["max_in_flight"] + values["max_streams"]
    return AT_REST + values["max_message_bytes"] * (ANSWERING + WAITING * calls)


def _bytes(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([MG])i?", text).groups()  # type: ignore[union-attr]
    return int(number) * {"M": MIB, "G": 1024 * MIB}[unit]


def _container(path: str, *keys: Any) -> dict[str, Any]:
    found = yaml.safe_load((ROOT / "deploy/kubernetes" / path).read_text())
    for key in keys:
        found = found[key]
    return found


BASE = _container("base/deployment.yaml", "spec", "template", "spec", "containers", 0)
SIDECAR = _container("sidecar/pod.yaml", "spec", "initContainers", 0)


@pytest.mark.parametrize("container", [BASE, SIDECAR], ids=["base", "sidecar"])
def test_a_container_may_take_what_its_flags_let_in(container: dict[str, Any]) -> None:
    assert _bytes(container["resources"]["limits"]["memory"]) >= _needed(container["args"])


def test_the_unit_may_take_what_its_variables_let_in() -> None:
    unit = (ROOT / "deploy/systemd/specgen-server.service").read_text()
    (variables,) = re.findall(r"^Environment=(.*)$", unit, re.MULTILINE)
    (limit,) = re.findall(r"^MemoryMax=(.*)$", unit, re.MULTILINE)
    flags = [
        re.sub("^SPECGEN_[A-Z_]+", _flag, variable, count=1) for variable in shlex.split(variables)
    ]
    assert _bytes(limit) >= _needed(flags)


def _flag(variable: re.Match[str]) -> str:
    return "--" + variable[0].removeprefix("SPECGEN_").lower().replace("_", "-")


def test_the_figure_of_the_defaults_is_right() -> None:
    (figure,) = re.findall(r"would take (\d+) GiB", (ROOT / "docs/operations.md").read_text())
    assert int(figure) == round(_needed([]) / 1024 / MIB)


# --- what calls take ------------------------------------------------------------------

MESSAGE = MIB

# of each kind of field, as many as possible in a message
SHAPES: dict[str, Callable[[int], BuildRequest]] = {
    "one argument": lambda n: build_request(command_args=["x" * n]),
    "empty arguments": lambda n: build_request(command_args=[""] * n),
    "variables": lambda n: build_request(environment_vars=[{"key": f"{i:06}"} for i in range(n)]),
    "empty variables": lambda n: build_request(environment_vars=[{}] * n),
    "inputs": lambda n: build_request(inputs=[file(f"{i:06}") for i in range(n)]),
    "empty inputs": lambda n: build_request(inputs=[{}] * n),
    "scratch paths": lambda n: build_request(scratch_paths=[f"{i:06}" for i in range(n)]),
    "outputs": lambda n: build_request(outputs=["build/b"] * n),
    "read-only paths": lambda n: build_request(
        constraints={"system": "x", "available_ro_paths": ["/a"] * n}
    ),
    "additional files": lambda n: build_request(additional_files=[{"path": "a"}] * n),
}


def _filled(shape: Callable[[int], BuildRequest]) -> bytes:
    each = (shape(2000).ByteSize() - shape(1000).ByteSize()) / 1000
    return shape(int((MESSAGE - 500) / each)).SerializeToString()


def _peak(server: RunningServer) -> int:
    """Return the most memory that the server had at a time, in bytes."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[1])  # type: ignore[index]


def _call(channel: grpc.Channel, message: bytes) -> Any:
    method = channel.unary_unary("/specgen.v1.SpecService/GenerateSpec")
    return method.future(message, wait_for_ready=True, timeout=120)


@pytest.mark.parametrize("name", SHAPES)
def test_a_request_takes_no_more_than_the_rule_says(name: str, tmp_path: Path) -> None:
    message = _filled(SHAPES[name])
    assert 0.8 * MESSAGE < len(message) <= MESSAGE
    flags = ("--workers", "1", "--max-message-bytes", str(MESSAGE))
    with (
        running_server("127.0.0.1:0", tmp_path / "log", *flags) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        assert _call(channel, build_request().SerializeToString()).code() is grpc.StatusCode.OK
        assert _peak(server) <= AT_REST
        before = _peak(server)
        _call(channel, message).code()
        assert _peak(server) - before <= ANSWERING * MESSAGE


def test_the_base_stays_within_its_limit_under_a_flood(tmp_path: Path) -> None:
    own = ("--listen", "--metrics")  # addresses
    flags = [flag for flag in BASE["args"] if not flag.startswith(own)]
    (size,) = (int(f.split("=")[1]) for f in flags if f.startswith("--max-message-bytes="))
    message = build_request(command_args=["x" * (size - 500)]).SerializeToString()
    with running_server("127.0.0.1:0", tmp_path / "log", *flags) as server:
        channels = [
            grpc.insecure_channel(
                server.address,
                [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)],
            )
            for _ in range(4)
        ]
        calls = [_call(channel, message) for channel in channels for _ in range(32)]
        codes = {call.code() for call in calls}
        for channel in channels:
            channel.close()
        assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert _peak(server) <= _bytes(BASE["resources"]["limits"]["memory"])


@pytest.mark.parametrize("build", [build_request(), build_request(command_args=[])])
def test_a_stream_keeps_nothing_of_its_builds(build: BuildRequest) -> None:
    """However long it goes on, and whether they are sound or refused."""
    call = SimpleNamespace(
        record=CallRecord("GenerateSpecs"), metadata=(), is_active=lambda: True, others_wait=False
    )
    service = SpecService()
    message = GenerateSpecsRequest(requests=[build] * 50).SerializeToString()
    service.generate_specs(message, call)  # what is kept once
    tracemalloc.start()
    try:
        for _ in range(100):
            service.generate_specs(message, call)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 5000 * 8  # not so much as a reference to each
