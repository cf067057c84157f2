"""A release: the wheel, the sdist, and what they are called."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME = f"tvix_specgen-{PROJECT['version']}"


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@dataclass(frozen=True)
class Built:
    sdist: Path
    wheel: Path
    """Made from the checkout."""
    wheel_of_sdist: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("dist")
    # what is made by the build and by working, and .git
    made = (".*_cache", ".git", ".hypothesis", ".venv", "__pycache__", "*_pb2*", "dist")
    shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns(*made))
    build = (sys.executable, "-m", "build", "--outdir")
    run(*build, folder / "both", folder / "checkout")  # the wheel from the sdist
    run(*build, folder / "wheel", "--wheel", folder / "checkout")
    wheel = f"{NAME}-py3-none-any.whl"
    return Built(
        folder / "both" / f"{NAME}.tar.gz", folder / "wheel" / wheel, folder / "both" / wheel
    )


def test_the_sdist_has_all_but_what_is_made(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
    wanted = {"CHANGELOG.md", "LICENSE", "Makefile", "README.md", "pyproject.toml", ".ci/run"}
    wanted |= {f"tests/{path.name}" for path in ROOT.glob("tests/*.py")}
    wanted |= {str(path.relative_to(ROOT)) for path in ROOT.glob("protos/**/*.proto")}
    assert wanted <= names
    assert not [name for name in names if "_pb2" in name or ".venv" in name]


def test_the_sdists_wheel_is_the_same(built: Built) -> None:
    assert built.wheel.read_bytes() == built.wheel_of_sdist.read_bytes()


def test_it_installs_in_a_clean_environment(built: Built, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "clean")
    binaries = tmp_path / "clean/bin"
    run(binaries / "pip", "install", "--quiet", f"{built.wheel}[server]")
    run(binaries / "pip", "check")
    for command in ("specgen", "specgen-server"):
        printed = run(binaries / command, "--version", cwd=tmp_path)
        assert printed == f"{command}, version {PROJECT['version']}\n"
    # a server, and a client that asks it
    command = (binaries / "python", ROOT / "examples/demo.py")
    demo = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert demo.returncode == 0, demo.stderr
    assert len(json.loads(demo.stdout)["mounts"]) == 39
    assert "\n28 inputs became 39 mounts.\n" in demo.stderr


def test_the_version_is_the_same_everywhere() -> None:
    (arg,) = re.findall(r"^ARG VERSION=(.*)$", (ROOT / "Dockerfile").read_text(), re.M)
    tags = [
        image["newTag"]
        for path in ROOT.glob("deploy/kubernetes/*/kustomization.yaml")
        for image in yaml.safe_load(path.read_text())["images"]
    ]
    headings = re.findall(r"^## \[([^]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "Unreleased"
    assert {arg, *tags, headings[1]} == {PROJECT["version"]}


def test_the_oldest_python_is_among_those_that_were_tried() -> None:
    oldest = PROJECT["requires-python"].removeprefix(">=")
    versions = [c for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert versions[0] == f"Programming Language :: Python :: {oldest}"
