"""What ``specgen bundle`` says of a command that cannot start here, and what the runtimes do."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runtimes import (
    CRUN,
    EVERY_WAY,
    RUNC,
    Lab,
    Mode,
    Runtime,
    new_lab,
    nodes,
    require_runtime,
    run,
    specgen,
)
from support import build_request, require

on_both = pytest.mark.parametrize("runtime", [RUNC, CRUN], ids=str)
MODE = Mode.ROOTFUL
TOOLS = "/nix/store/tools"
PROGRAM = "/nix/store/programs/program"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with new_lab() as lab:
        yield lab


def program(lab: Lab, contents: bytes | Path, mode: int = 0o755) -> None:
    """Lay the command of the build."""
    directory = lab.inputs() / "programs"
    directory.mkdir()
    path = directory / "program"
    if isinstance(contents, Path):
        shutil.copyfile(contents, path)
    else:
        path.write_bytes(contents)
    path.chmod(mode)


def said_and_done(
    lab: Lab, runtime: Runtime, *flags: str, mode: Mode = MODE, **fields: Any
) -> tuple[list[str], int | None, str]:
    """Return what ``specgen bundle`` warns of, and how the runtime ends."""
    require_runtime(runtime, mode)
    fields.setdefault("command_args", [PROGRAM])
    request = build_request(inputs=nodes(lab.inputs()), **fields)
    bundle = lab.path / "builds" / "bundle"
    words = ("bundle", "-", bundle, "--format", "binary", "--inputs", lab.inputs(), "--no-terminal")
    rootful = ("--rootful",) if mode is Mode.ROOTFUL else ()
    done = specgen(mode, *words, *rootful, *flags, stdin=request)
    assert done.exit_code == 0, done.output
    outcome = run(runtime, mode, bundle)
    warnings = [line for line in done.output.splitlines() if line.startswith("specgen: warning: ")]
    about = [line for line in warnings if "the command" in line or "sandbox shell" in line]
    return about, outcome.exit_code, outcome.output.lower()


@on_both
@pytest.mark.parametrize(
    ("contents", "mode", "warning", "words"),
    [
        pytest.param(
            b"#!/nix/store/gone/sh\n",
            0o755,
            'is a script for "/nix/store/gone/sh", which cannot be executed in the sandbox',
            "no such file or directory",
            id="interpreter_gone",
        ),
        pytest.param(
            b"#!/nix/store/tools/busybox sh\r\nexit 0\r\n",
            0o755,
            "is a script",
            "",
            id="cr_lf_after_an_argument",
        ),
        pytest.param(
            b"#!/nix/store/tools/busybox\r\nexit 0\r\n",
            0o755,
            "is a script whose lines end in CR LF",
            "no such file or directory",
            id="cr_lf",
        ),
        pytest.param(
            b"exit 0\n",
            0o755,
            "is neither an ELF file nor a script",
            "exec format error",
            id="no_interpreter",
        ),
        pytest.param(
            b"#!/nix/store/tools/busybox sh\n",
            0o644,
            "may not be executed by the build (mode 644)",
            "permission denied",
            id="not_executable",
        ),
        pytest.param(
            Path("/bin/bash"),
            0o755,
            "is linked dynamically, and the build will not have its /lib64/ld-linux-x86-64.so.2",
            "no such file or directory",
            id="no_loader",
        ),
    ],
)
def test_a_command_that_cannot_start(
    runtime: Runtime, contents: bytes | Path, mode: int, warning: str, words: str, lab: Lab
) -> None:
    program(lab, contents, mode)
    found, exit_code, output = said_and_done(lab, runtime)
    if not words:  # the CR is the argument's: the script starts
        assert found == []
        return
    [line] = found
    assert line.startswith(f'specgen: warning: the command "{PROGRAM}" {warning}')
    assert exit_code != 0
    assert words in output or "missing dynamic library" in output


@on_both
def test_a_command_that_is_not_there(runtime: Runtime, lab: Lab) -> None:
    program(lab, b"")
    gone = "/nix/store/programs/gone"
    [line], exit_code, output = said_and_done(lab, runtime, command_args=[gone])
    assert f'the command "{gone}" is nothing to execute: {gone}, no such file' in line
    assert exit_code != 0
    assert "no such file or directory" in output


@pytest.mark.parametrize(("runtime", "mode"), EVERY_WAY)
@pytest.mark.parametrize(
    "contents",
    [
        pytest.param(b"#!/nix/store/tools/busybox sh\nexit 0\n", id="script"),
        pytest.param(b"#!/nix/store/programs/busybox sh\nexit 0\n", id="by_a_link"),
        pytest.param(b"#! \t/nix/store/tools/busybox  sh\nexit 0\n", id="blanks"),
    ],
)
def test_nothing_is_said_of_what_starts(
    runtime: Runtime, mode: Mode, contents: bytes, lab: Lab
) -> None:
    program(lab, contents)
    (lab.inputs() / "programs" / "busybox").symlink_to("../tools/busybox")
    assert said_and_done(lab, runtime, mode=mode)[:2] == ([], 0)


SHELL_REQUEST = {
    "command_args": ["/bin/sh", "-c", "exit 0"],
    "constraints": {"system": "x86_64-linux", "provide_bin_sh": True},
}


@on_both
@pytest.mark.parametrize(
    ("kind", "warning", "words"),
    [
        pytest.param("directory", "is a directory", "", id="directory"),
        pytest.param("closed", "may not be executed by the build", "permission denied", id="mode"),
        pytest.param("script", "is a script for", "", id="script_without_interpreter"),
        pytest.param("text", "is neither an ELF file nor a script", "exec format", id="text"),
    ],
)
def test_a_sandbox_shell_that_cannot_start(
    runtime: Runtime, kind: str, warning: str, words: str, lab: Lab
) -> None:
    shell = lab.path / "shell"
    if kind == "directory":
        shell.mkdir()
    else:
        shell.write_text("#!/nix/gone\n" if kind == "script" else "exit 0\n")
        shell.chmod(0o644 if kind == "closed" else 0o755)
    found, exit_code, output = said_and_done(
        lab, runtime, "--sandbox-shell", str(shell), **SHELL_REQUEST
    )
    assert [line for line in found if f"the sandbox shell {shell} {warning}" in line]
    assert exit_code != 0
    assert words in output


def test_a_limit_of_open_files_above_ones_own(lab: Lab) -> None:
    program(lab, b"#!/nix/store/tools/busybox sh\nexit 0\n")
    require_runtime(RUNC, Mode.UNPRIVILEGED)
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    require(most <= 2**30 - 1, "fs.nr_open below 2**30")
    request = build_request(inputs=nodes(lab.inputs()), command_args=[PROGRAM])
    bundle = lab.path / "builds" / "bundle"
    words = ("bundle", "-", bundle, "--format", "binary", "--inputs", lab.inputs(), "--no-terminal")
    done = specgen(Mode.UNPRIVILEGED, *words, "--nofile", f"1024:{most + 1}", stdin=request)
    assert f"a build may have {most + 1} files open by its spec, and this user" in done.output
    outcome = run(RUNC, Mode.UNPRIVILEGED, bundle)
    assert outcome.exit_code != 0
    assert "operation not permitted" in outcome.output.lower()


# --- noexec -----------------------------------------------------------------------------


@contextlib.contextmanager
def mounted_noexec(directory: Path) -> Iterator[None]:
    """Mount a file system of its own there, with what the directory holds."""
    kept = directory.with_name(f"{directory.name}-kept")
    shutil.copytree(directory, kept, symlinks=True)
    status = directory.stat()
    flags = f"noexec,mode=755,uid={status.st_uid},gid={status.st_gid}"
    subprocess.run(("mount", "-t", "tmpfs", "-o", flags, "tmpfs", directory), check=True)
    try:
        shutil.copytree(kept, directory, symlinks=True, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(("umount", directory), check=True)


EXECUTED = {
    "command_args": [
        f"{TOOLS}/busybox",
        "sh",
        "-ec",
        f"{TOOLS}/cp {TOOLS}/busybox .; ./busybox true",
    ],
    "working_dir": "build",
}


def on_noexec(lab: Lab, runtime: Runtime, mode: Mode, *flags: str) -> tuple[str, int | None, str]:
    """Return what is said of noexec, and how the build ends."""
    request = build_request(inputs=nodes(lab.inputs()), **EXECUTED)
    bundle = lab.path / "builds" / "bundle"
    words = ("bundle", "-", bundle, "--format", "binary", "--inputs", lab.inputs(), "--no-terminal")
    rootful = ("--rootful",) if mode is Mode.ROOTFUL else ()
    done = specgen(mode, *words, *rootful, *flags, stdin=request)
    assert done.exit_code == 0, done.output
    outcome = run(runtime, mode, bundle)
    said = [line for line in done.output.splitlines() if "noexec" in line]
    return "\n".join(said), outcome.exit_code, outcome.output.lower()


@pytest.mark.parametrize(("runtime", "mode"), EVERY_WAY)
def test_inputs_on_noexec(runtime: Runtime, mode: Mode, lab: Lab) -> None:
    require_runtime(runtime, mode)
    with mounted_noexec(lab.inputs()):
        said, exit_code, output = on_noexec(lab, runtime, mode)
        if mode is Mode.ROOTFUL:
            assert (said, exit_code) == ("", 0), output
        else:
            assert (
                f"warning: the inputs in {lab.inputs()} lie on a file system mounted noexec" in said
            )
            assert exit_code != 0
            word = "operation not permitted" if runtime is RUNC else "permission denied"
            assert word in output


@pytest.mark.parametrize(("runtime", "mode"), EVERY_WAY)
def test_copied_inputs_are_where_the_bundle_is(runtime: Runtime, mode: Mode, lab: Lab) -> None:
    require_runtime(runtime, mode)
    with mounted_noexec(lab.inputs()):
        assert on_noexec(lab, runtime, mode, "--copy-inputs")[:2] == ("", 0)


@pytest.mark.parametrize(("runtime", "mode"), EVERY_WAY)
def test_a_bundle_on_noexec(runtime: Runtime, mode: Mode, lab: Lab) -> None:
    require_runtime(runtime, mode)
    lab.inputs()
    with mounted_noexec(lab.path / "builds"):
        said, exit_code, output = on_noexec(lab, runtime, mode)
    where = "runc" if mode is Mode.ROOTFUL else "runc and crun"
    assert f"lies on a file system mounted noexec: on {where} a build can execute nothing" in said
    if runtime is CRUN and mode is Mode.ROOTFUL:
        assert exit_code == 0, output
    else:
        assert exit_code != 0
        assert "permission denied" in output
