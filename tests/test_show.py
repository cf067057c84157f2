"""``specgen show``: a sandbox at a glance."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support import GOLDEN_NAMES, RunningServer, build_request, file, golden_case

from specgen_client.cli import main
from specgen_client.show import sandbox_text
from specgen_core import IdMapping, SpecOptions, scratch_path
from specgen_core.answer import generate
from specgen_core.text import printable
from tvix.build.protos.build_pb2 import BuildRequest

QUIET = SpecOptions(rootless=False, terminal=False)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def shown(request: BuildRequest, options: SpecOptions = QUIET, **kwargs: Any) -> str:
    return sandbox_text(generate(request, options), **kwargs)


def section(text: str, title: str) -> str:
    """Return the lines below a title."""
    found = re.search(rf"^{title}.*\n((?:(?:  .*)?\n)*)", text, re.MULTILINE)
    assert found, f"no {title} in:\n{text}"
    return found[1].strip("\n")


@pytest.mark.parametrize("name", GOLDEN_NAMES)
@pytest.mark.parametrize("everything", [False, True], ids=["cut", "all"])
def test_nothing_is_wrapped_where_nobody_looks_on(name: str, everything: bool) -> None:
    request = golden_case(name).request
    text = shown(request, SpecOptions(), everything=everything)
    found = generate(request, SpecOptions())
    paths = [f"/{o.path}" for o in found.output_paths] + [o.bundle_path for o in found.output_paths]
    messages = [d.message for d in found.diagnostics]
    assert [t for t in (*paths, *messages) if printable(t) not in text] == []
    assert "\x1b" not in text


def test_a_real_build() -> None:
    text = shown(golden_case("real_ogre-1.9.0").request)
    store = scratch_path("nix/store")
    assert re.findall(r"^\w.*", text, re.MULTILINE) == [
        "Command",
        "Environment",
        "Namespaces",
        "Mounts, in order: a later one covers an earlier one at or above its place",
        "Writable",
        "Outputs, and where they land in the bundle",
        "What will keep it from running",
    ]
    assert "bash-4.3-p42/bin/bash -e" in section(text, "Command")
    assert "in /build, as uid 1000, gid 100, without a terminal" in section(text, "Command")
    assert re.search(r"^  PATH +/path-not-set$", section(text, "Environment"), re.MULTILINE)
    assert "(1420 characters)" in re.sub(r"\s+", " ", section(text, "Environment"))
    assert section(text, "Namespaces").splitlines() == [
        "  its own: pid ipc uts mount cgroup network",
        "  the host's: user",
    ]
    mounts = section(text, "Mounts")
    assert re.search(r"^  ro  /nix/store/NAME  inputs/NAME, for each of$", mounts, re.MULTILINE)
    assert "... and 8 more: --all shows them" in mounts
    places = ["/proc", "/tmp", "/build", "/nix/store/NAME", "libICE-1.0.9", "/bin/sh"]
    assert [mounts.index(place) for place in places] == sorted(map(mounts.index, places))
    assert f"  /nix/store  {store}" in section(text, "Writable")
    out = "sm3328izk0kinygp8z3jgizbwnz4k9lp-ogre-1.9.0"
    assert section(text, "Outputs") == f"  /nix/store/{out}  {store}/{out}"
    assert "nothing that the request says" in section(text, "What will")


def test_all() -> None:
    request = golden_case("real_ogre-1.9.0").request
    text = shown(request, everything=True)
    assert "more: --all" not in text
    assert "characters)" not in text
    for node in request.inputs:
        assert (node.directory.name or node.file.name).decode() in text


def test_id_mappings_and_network() -> None:
    options = SpecOptions(
        uid_mappings=(IdMapping(0, 1001, 1), IdMapping(1, 100_000, 65_536)),
        gid_mappings=(IdMapping(0, 1001, 1),),
        cgroup_namespace=False,
    )
    constraints = {"system": "x86_64-linux", "network_access": True}
    text = shown(build_request(constraints=constraints), options)
    assert section(text, "Namespaces").splitlines() == [
        "  its own: pid ipc uts mount user",
        "  the host's: network cgroup",
        "  uids, sandbox to host: 0 is 1001, 1-65536 are 100000-165535",
        "  gids, sandbox to host: 0 is 1001",
    ]
    diagnostics = section(text, "What will")
    assert "build-user-not-mapped  options.gid_mappings" in diagnostics
    assert "needs-terminal  options.terminal" in diagnostics


def test_nothing_there() -> None:
    text = shown(build_request(scratch_paths=[], outputs=[]))
    for title in ("Environment", "Writable", "Outputs"):
        assert section(text, title) == "  none"


def test_what_would_drive_a_terminal_is_escaped() -> None:
    request = build_request(
        command_args=["/x", "\x1b[31mred", "[bold]markup[/bold]"],
        environment_vars=[{"key": "K\r", "value": b"\x1b]0;title\x07\n"}],
        inputs=[file("a\x1b[1m")],
    )
    text = shown(request)
    assert "\x1b" not in text
    assert "\\x1b[31mred" in text
    assert "[bold]markup[/bold]" in text
    assert "\\x1b]0;title\\x07\\n" in text


def test_colour_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    request = build_request()
    assert "\x1b" not in shown(request)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes anything for a terminal
    assert "\x1b[1;36mCommand" in shown(request)


@pytest.mark.parametrize("colour", [False, True])
def test_rendering_writes_nothing(colour: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if colour:
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("FORCE_COLOR", "1")
    with io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True) as full:
        monkeypatch.setattr("sys.stdout", full)
        text = shown(build_request())
        monkeypatch.undo()
    assert ("\x1b[" in text) is colour
    assert "Command" in text


def test_on_a_terminal_it_is_as_wide_and_in_colour(tmp_path: Path) -> None:
    path = tmp_path / "request.binpb"
    path.write_bytes(build_request(command_args=["/x" * 90]).SerializeToString())
    specgen = Path(sys.executable).with_name("specgen")
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color"}
    process = subprocess.Popen(
        [specgen, "show", path, "--rootful"], stdin=its, stdout=its, stderr=its, env=environment
    )
    os.close(its)
    written = b""
    with process, contextlib.suppress(OSError):  # EIO: it has left
        while chunk := os.read(ours, 65536):
            written += chunk
    os.close(ours)
    assert process.returncode == 0
    assert b"\x1b[1;36mCommand" in written
    assert b"/x" * 90 in written


def test_command(server: RunningServer, tmp_path: Path) -> None:
    path = tmp_path / "request.binpb"
    path.write_bytes(build_request().SerializeToString())
    words = ["show", str(path), "--rootful", "--no-terminal"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert result.output == shown(build_request())
    asked = CliRunner().invoke(main, [*words, "--server", server.address])
    assert asked.output == result.output


def test_command_refuses() -> None:
    data = build_request(working_dir="/").SerializeToString()
    result = CliRunner().invoke(main, ["show", "-"], input=data)
    assert result.exit_code == 1
    assert "the request was refused:\n  working_dir:" in result.output
