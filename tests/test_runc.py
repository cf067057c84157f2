"""A generated spec on a real runc: the build runs, and its output is where it should be.

The bundle is made by hand here, by nothing but the answer of the service. Where runc is
given a terminal, that is a pty of our own: a runtime may change the owner of whatever it
has as standard input and output.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from support import RunningServer, build_request, require, require_program

from specgen.v1.specgen_pb2 import SpecJSON
from specgen.v1.specgen_pb2_grpc import SpecServiceStub
from specgen_core import BUILD_GID, BUILD_UID
from tvix.build.protos.build_pb2 import BuildRequest
from tvix.castore.protos.castore_pb2 import Node

SECONDS = 30


@dataclass
class Ran:
    """How a bundle ran."""

    code: int
    terminal: str
    """What it wrote there."""


class Runc:
    def __init__(self, program: str, state: Path) -> None:
        self._command = [program, "--root", str(state)]

    def run(self, bundle: Path) -> Ran:
        container = f"specgen-{uuid.uuid4().hex}"
        with terminal() as (fd, written):
            try:
                done = subprocess.run(
                    [*self._command, "run", "--bundle", str(bundle), container],
                    stdin=fd,
                    stdout=fd,
                    stderr=fd,
                    start_new_session=True,
                    timeout=SECONDS,
                )
            finally:
                self._delete(container)
        return Ran(done.returncode, b"".join(written).decode().replace("\r\n", "\n"))

    def _delete(self, container: str) -> None:
        subprocess.run(
            [*self._command, "delete", "--force", container],
            stdin=subprocess.PIPE,
            capture_output=True,
            timeout=SECONDS,
        )


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, list[bytes]]]:
    """Yield a terminal's file descriptor, and what is written to it."""
    ours, theirs = pty.openpty()
    written: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # EIO: all others have closed it
            while chunk := os.read(ours, 65536):
                written.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield theirs, written
    finally:
        os.close(theirs)
        reader.join(SECONDS)
        os.close(ours)


@pytest.fixture
def runc(tmp_path: Path) -> Runc:
    program = require_program("runc")
    require(os.geteuid() == 0, "root to run rootful builds as")
    return Runc(program, tmp_path / "state")


@pytest.fixture
def busybox() -> Path:
    """Return a shell that needs no libraries, as the sandbox has none."""
    path = Path(require_program("busybox"))
    listed = subprocess.run(["ldd", path], capture_output=True)
    require(listed.returncode != 0, "statically linked busybox")
    return path


@pytest.fixture
def stub(server: RunningServer) -> Iterator[SpecServiceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield SpecServiceStub(channel)


def answer_of(stub: SpecServiceStub, request: BuildRequest, **options: Any) -> SpecJSON:
    entry = json.dumps({"rootless": False} | options)
    return stub.GenerateSpec(request, metadata=(("specgen-options", entry),), timeout=20)


def write_bundle(bundle: Path, answer: SpecJSON, inputs: dict[str, str]) -> None:
    """Lay a bundle out as the answer has it; inputs are shell scripts, by their names."""
    bundle.mkdir(mode=0o700)
    (bundle / "config.json").write_text(answer.json)
    root = bundle / "root"
    for path in ("bin", "dev", "proc", "sys", "tmp"):
        (root / path).mkdir(parents=True)
    (root / "bin/sh").touch()
    for scratch in answer.scratch_dirs:
        (root / scratch.path).mkdir(parents=True, exist_ok=True)
        made = bundle / scratch.bundle_path
        made.mkdir(parents=True, exist_ok=True)
        os.chown(made, BUILD_UID, BUILD_GID)
    for path in (root, *root.rglob("*")):
        path.chmod(0o755)
    (bundle / "inputs").mkdir()
    for name, script in inputs.items():
        (bundle / "inputs" / name).write_text(script)
        (bundle / "inputs" / name).chmod(0o755)


def script_request(name: str, **fields: Any) -> BuildRequest:
    """Return a request that runs one of its inputs with the sandbox shell."""
    return build_request(
        inputs=[Node(file={"name": name.encode(), "digest": b"d" * 32, "executable": True})],
        command_args=["/bin/sh", f"/nix/store/{name}"],
        environment_vars=[
            {"key": "out", "value": b"/nix/store/out"},
            {"key": "words", "value": "two words, ünïcode".encode()},
        ],
        constraints={"system": "x86_64-linux", "provide_bin_sh": True},
        **fields,
    )


SCRIPT = """
set -e
echo "$words" > "$out"
echo "$PWD" >> "$out"
[ -t 0 ] && [ -t 1 ] && echo "a terminal" >> "$out"
while read -r line; do
    case $line in
        Uid:*|Gid:*|NoNewPrivs:*|CapEff:*) echo $line >> "$out";;
    esac
done < /proc/self/status
echo built
"""


def test_output_appears_where_it_was_promised(
    runc: Runc, busybox: Path, stub: SpecServiceStub, tmp_path: Path
) -> None:
    answer = answer_of(stub, script_request("builder.sh"), sandbox_shell=str(busybox))
    bundle = tmp_path / "bundle"
    write_bundle(bundle, answer, {"builder.sh": SCRIPT})

    ran = runc.run(bundle)

    assert (ran.code, ran.terminal) == (0, "built\n")
    assert [found.path for found in answer.output_paths] == ["nix/store/out"]
    output = bundle / answer.output_paths[0].bundle_path
    assert output.read_text().splitlines() == [
        "two words, ünïcode",
        "/build",
        "a terminal",
        "Uid: 1000 1000 1000 1000",
        "Gid: 100 100 100 100",
        "CapEff: 0000000020000020",  # CAP_AUDIT_WRITE and CAP_KILL
        "NoNewPrivs: 1",
    ]
    assert (output.stat().st_uid, output.stat().st_gid) == (BUILD_UID, BUILD_GID)


def test_outputs_under_nested_scratch_paths(
    runc: Runc, busybox: Path, stub: SpecServiceStub, tmp_path: Path
) -> None:
    """Each belongs to the nearest scratch path, by components."""
    outputs = ["nix/store/out", "work/deep-2", "work/deep/a"]
    request = script_request(
        "b.sh", scratch_paths=["nix/store", "work", "work/deep"], outputs=outputs, working_dir=""
    )
    answer = answer_of(stub, request, sandbox_shell=str(busybox))
    bundle = tmp_path / "bundle"
    write_bundle(bundle, answer, {"b.sh": "".join(f"echo {path} > /{path}\n" for path in outputs)})

    ran = runc.run(bundle)

    assert (ran.code, ran.terminal) == (0, "")
    found = {output.path: (bundle / output.bundle_path) for output in answer.output_paths}
    assert {path: file.read_text() for path, file in found.items()} == {
        path: f"{path}\n" for path in outputs
    }


def test_exit_code_and_read_only_root(
    runc: Runc, busybox: Path, stub: SpecServiceStub, tmp_path: Path
) -> None:
    answer = answer_of(stub, script_request("b.sh"), sandbox_shell=str(busybox))
    bundle = tmp_path / "bundle"
    script = 'for d in / /bin /nix; do (: > "$d/x") 2>&- && exit 1; done\nexit 7'
    write_bundle(bundle, answer, {"b.sh": script})

    assert runc.run(bundle).code == 7
