"""The image: what the Dockerfile promises, and a real build and run of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from support import build_request, everything_is_required, require_program

from specgen_client import SpecClient
from specgen_client.cli import main as specgen
from specgen_server.process.cli import main as specgen_server

ROOT = Path(__file__).parent.parent
PORT = 50051


def _instructions() -> list[tuple[str, str]]:
    text = (ROOT / "Dockerfile").read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    joined = lines.replace("\\\n", " ")
    return [
        (word, re.sub(r"\s+", " ", rest.strip()))
        for word, _, rest in (line.strip().partition(" ") for line in joined.splitlines() if line)
    ]


INSTRUCTIONS = _instructions()
STAGES = [i for i, (word, _) in enumerate(INSTRUCTIONS) if word == "FROM"]
FINAL = dict(INSTRUCTIONS[STAGES[-1] :])


def test_the_final_stage_holds_no_tools() -> None:
    assert len(STAGES) > 1
    assert FINAL["FROM"] == "scratch"
    assert "RUN" not in FINAL
    assert FINAL["COPY"].startswith("--from=build ")


def test_the_base_can_be_pulled_by_its_full_name() -> None:
    assert INSTRUCTIONS[0] == ("FROM", "docker.io/library/debian:bookworm-slim AS build")


def test_it_runs_as_a_numeric_user_that_is_not_root() -> None:
    user, group = FINAL["USER"].split(":")
    assert int(user) > 0
    assert int(group) > 0


def test_the_entry_point_gets_signals_itself() -> None:
    assert json.loads(FINAL["ENTRYPOINT"]) == ["specgen-server"]
    assert FINAL["STOPSIGNAL"] == "SIGTERM"
    assert "CMD" not in FINAL


def test_the_health_check_asks_where_the_server_listens() -> None:
    flags, _, command = FINAL["HEALTHCHECK"].partition(" CMD ")
    program, subcommand, *arguments = json.loads(command)
    assert (program, subcommand) == ("specgen", "health")
    asked = specgen.commands["health"].make_context("health", arguments).params  # type: ignore[attr-defined]
    limit = re.search(r"--timeout=(\d+)s", flags)
    assert limit
    assert asked["timeout"] < int(limit[1])
    assert asked["server"] == f"127.0.0.1:{PORT}"
    assert FINAL["EXPOSE"] == str(PORT)
    assert f"SPECGEN_LISTEN=0.0.0.0:{PORT}" in FINAL["ENV"].split()


def test_its_variables_are_the_servers() -> None:
    named = {f"SPECGEN_{param.name.upper()}" for param in specgen_server.params if param.name}
    given = re.findall(r"\b(SPECGEN_\w+)=", FINAL["ENV"])
    assert given
    assert set(given) <= named


def test_it_has_the_labels_of_oci_images() -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', FINAL["LABEL"]))
    assert {"title", "description", "version", "revision", "licenses"} <= labels.keys()
    assert ("ARG", f"VERSION={metadata.version('tvix-specgen')}") in INSTRUCTIONS


def test_the_build_sees_no_more_than_it_needs() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in ignored if line and not line.startswith("#")]
    assert patterns[0] == "*"
    kept = {line.removeprefix("!") for line in patterns if line.startswith("!")}
    assert kept == {
        "LICENSE",
        "README.md",
        "client",
        "core",
        "deploy/image-root.sh",
        "protos",
        "pyproject.toml",
        "server",
    }
    assert all((ROOT / name).exists() for name in kept)


# --- built and run --------------------------------------------------------------------

BUILDAH = ("buildah", "--storage-driver", "vfs")
ASKED_FOR = "SPECGEN_IMAGE_TEST"
NAME = "localhost/specgen-test:latest"


@dataclass(frozen=True)
class Image:
    root: Path
    config: dict[str, Any]


def _output(*command: str | Path) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """Build the image, in a storage of its own that goes with the test."""
    if os.environ.get(ASKED_FOR) != "1" and not everything_is_required():
        pytest.skip(f"{ASKED_FOR}=1 builds the image and runs it")
    for program in ("buildah", "debootstrap", "runc"):
        require_program(program)
    storage = tmp_path_factory.mktemp("storage")
    (storage / "storage.conf").write_text(
        f"""[storage]\ndriver = "vfs"\ngraphroot = "{storage}/graph"\nrunroot = "{storage}/run"\n"""
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERS_STORAGE_CONF", str(storage / "storage.conf"))
        patch.setenv("SPECGEN_BASE", "debootstrap")
        try:
            subprocess.run([ROOT / "deploy/build-image.sh", NAME], check=True)
            container = _output(*BUILDAH, "from", "--pull-never", NAME)
            inspected = json.loads(_output(*BUILDAH, "inspect", "--type", "image", NAME))
            yield Image(
                root=Path(_output(*BUILDAH, "mount", container)),
                config=inspected["Docker"]["config"],
            )
        finally:
            _output(*BUILDAH, "rm", "--all")
            shutil.rmtree(storage)


def _bundle(image: Image, tmp_path: Path, *arguments: str) -> Path:
    """Return an OCI bundle of the image, restricted as a pod, on the host's network."""
    _output("runc", "spec", "--bundle", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    user, group = map(int, image.config["User"].split(":"))
    config["process"] |= {
        "terminal": False,
        "args": image.config["Entrypoint"] + list(arguments),
        "env": image.config["Env"],
        "user": {"uid": user, "gid": group},
        "capabilities": {},
        "rlimits": [],
        "noNewPrivileges": True,
    }
    config["root"] = {"path": str(image.root), "readonly": True}
    config["linux"]["namespaces"] = [
        namespace for namespace in config["linux"]["namespaces"] if namespace["type"] != "network"
    ]
    # sysfs can be mounted by the owner of the network only
    config["mounts"] = [mount for mount in config["mounts"] if mount["destination"] != "/sys"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_container_serves_and_drains(image: Image, tmp_path: Path) -> None:
    health = image.config["Healthcheck"]["Test"][1:]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    bundle = _bundle(image, tmp_path, "--listen", address, "--workers", "2", "--grace", "5")
    name = f"specgen-test-{os.getpid()}"
    health = [address if word == f"127.0.0.1:{PORT}" else word for word in health]
    container = subprocess.Popen(["runc", "run", "--bundle", bundle, name])
    try:
        deadline = time.monotonic() + 10
        while subprocess.run(["runc", "exec", name, *health]).returncode != 0:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with SpecClient(address) as client:
            assert client.generate(build_request()).json.startswith('{"ociVersion"')
        subprocess.run(["runc", "kill", name, "TERM"], check=True)
        assert container.wait(10) == 0
    finally:
        container.send_signal(signal.SIGKILL)
        container.wait()
        subprocess.run(["runc", "delete", "--force", name], stderr=subprocess.DEVNULL)


def test_it_is_small(image: Image) -> None:
    size = int(_output("du", "--summarize", "--bytes", image.root).split()[0])
    assert size < 120_000_000
    assert not shutil.which("sh", path=f"{image.root}/bin:{image.root}/usr/bin")
