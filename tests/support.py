"""What several test files need: cases, requests, real components, and a running server."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import pytest

from specgen_client.proto_json import request_from_json
from tvix.build.protos.build_pb2 import BuildRequest
from tvix.castore.protos.castore_pb2 import Node

TESTS = Path(__file__).parent
GOLDEN = TESTS / "golden"
OCI_SCHEMA = Path(
    "/usr/share/gocode/src/github.com/opencontainers/runtime-spec/schema/config-schema.json"
)

# --- cases ----------------------------------------------------------------------------


@dataclass(frozen=True)
class GoldenCase:
    """A request and what the reference made of it."""

    name: str
    request: BuildRequest
    sandbox_shell: str
    specs: dict[str, Any]
    """By mode: rootless, rootful."""


@dataclass(frozen=True)
class BulkCase:
    """A request and the digests of what the reference made of it."""

    request: bytes
    digests: dict[str, str]


@dataclass(frozen=True)
class InvalidCase:
    """A request that breaks a rule, and the field to be named."""

    name: str
    field: str
    request: bytes


MODES = ("rootless", "rootful")
GOLDEN_NAMES = sorted(
    path.stem
    for path in GOLDEN.glob("*.json")
    if path.name != "invalid.json" and not path.name.endswith(".got.json")
)


def golden_case(name: str) -> GoldenCase:
    case = json.loads((GOLDEN / f"{name}.json").read_text())
    return GoldenCase(
        name=name,
        request=request_from_json(json.dumps(case["request"])),
        sandbox_shell=case["sandbox_shell"],
        specs=case["spec"],
    )


def bulk_cases() -> list[BulkCase]:
    with gzip.open(GOLDEN / "real_bulk.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        BulkCase(
            request=base64.b64decode(row["request_base64"]),
            digests={mode: row[f"{mode}_sha256"] for mode in MODES},
        )
        for row in rows
    ]


def invalid_cases() -> list[InvalidCase]:
    return [
        InvalidCase(row["name"], row["field"], base64.b64decode(row["request_base64"]))
        for row in json.loads((GOLDEN / "invalid.json").read_text())
    ]


def names_field(violated: str, field: str) -> bool:
    """Whether a violation's field is ``field``, or a part of it."""
    return violated == field or violated.startswith(f"{field}.")


# --- requests -------------------------------------------------------------------------


def build_request(**fields: Any) -> BuildRequest:
    """Return a valid request, with these fields in the place of its own."""
    plain = {
        "command_args": ["/bin/sh", "-c", "true"],
        "working_dir": "build",
        "scratch_paths": ["build", "nix/store"],
        "inputs_dir": "nix/store",
        "outputs": ["nix/store/out"],
        "constraints": {"system": "x86_64-linux"},
    }
    return BuildRequest(**(plain | fields))


def file(name: str | bytes, **fields: Any) -> Node:
    """Return a node that is a file."""
    named = name.encode() if isinstance(name, str) else name
    return Node(file={"name": named, "digest": b"d" * 32, "size": 1} | fields)


def large_request(inputs: int = 10_000) -> BuildRequest:
    """Return a request beyond gRPC's own limit of 4 MiB, and so is its spec."""
    return build_request(
        inputs=[file(f"{i:032}-" + "n" * 200) for i in range(inputs)],
        additional_files=[{"path": "build/attrs.json", "contents": b"x" * (4 * 1024 * 1024)}],
    )


# --- real components ------------------------------------------------------------------


def require(present: object, what: str) -> None:
    """Skip the test where a real component is missing."""
    if not present:
        missing(what)


def everything_is_required() -> bool:
    """Whether a test that is skipped fails: conftest.py sees to it."""
    return os.environ.get("SPECGEN_REQUIRE_ALL") == "1"


def missing(what: str) -> NoReturn:
    pytest.skip(f"no {what}")


def require_program(name: str) -> str:
    """Return the path of a program, of the system's or of Go's own directory."""
    go = Path(os.environ.get("GOPATH") or Path.home() / "go") / "bin"
    found = shutil.which(name) or shutil.which(name, path=str(go))
    return found or missing(name)


# --- a running server -----------------------------------------------------------------

STARTUP_SECONDS = 60.0  # of a machine that is busy with something else


@dataclass(frozen=True)
class RunningServer:
    """A ``specgen-server`` process."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path


@contextlib.contextmanager
def running_server(
    listen: str, log: Path, *flags: str, preexec_fn: Callable[[], object] | None = None
) -> Iterator[RunningServer]:
    """Run the real command, with its standard error in ``log``."""
    command = [sys.executable, "-m", "specgen_server", "--listen", listen, *flags]
    with (
        log.open("wb") as stderr,
        subprocess.Popen(command, stderr=stderr, process_group=0, preexec_fn=preexec_fn) as process,
    ):
        try:
            yield RunningServer(process, _listening_address(process, log), log)
            process.terminate()
            process.wait(20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _listening_address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline:
        if found := re.search(r'\blistening on ([^\s"]+)', log.read_text()):
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.02)
    pytest.fail(f"the server did not start (exit code {process.poll()}):\n{log.read_text()}")


def rows_below(page: Path, heading: str) -> list[list[str]]:
    """Return the cells of the first table under a heading of a page."""
    _, _, section = page.read_text().partition(f"\n## {heading}\n")
    lines = section.partition("\n## ")[0].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


# --- tables of the entries in core/specgen_core/diagnostics/ and client/ ----------------


class Entry(Protocol):
    """A rule of diagnostics, or a check of the host."""

    @property
    def code(self) -> str: ...
    @property
    def sentence(self) -> str: ...
    @property
    def find(self) -> Callable[..., Any]: ...
    @property
    def proven_by(self) -> tuple[str, ...]: ...


def assert_has_table_of(page: Path, says: str, entries: Iterable[Entry]) -> None:
    """Hold the table with this third column to its entries; SPECGEN_REWRITE=1 writes it anew."""
    head = f"| Code | When | {says} | Proven by |\n|---|---|---|---|\n"
    text = page.read_text()
    before, _, rest = text.partition(head)
    _, _, after = rest.partition("\n\n")
    expected = f"{before}{head}{''.join(map(_row, entries))}\n{after}"
    if os.environ.get("SPECGEN_REWRITE") == "1":
        page.write_text(expected)
    assert text == expected


def _row(entry: Entry) -> str:
    """Return an entry's line of its table; words of a finding are in italics there."""
    when = " ".join((entry.find.__doc__ or "").replace("``", "`").split())
    message = re.sub(r"\{(\w+)(:\w)?\}", r"*\1*", entry.sentence).replace("|", "\\|")
    tests = ", ".join(f"`{name}`" for name in entry.proven_by) or "seen by hand, once"
    return f"| `{entry.code}` | {when} | {message} | {tests} |\n"
