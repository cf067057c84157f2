"""Whether a build's command, and the /bin/sh that it is given, can be executed on this host."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from specgen_core import Request, oci
from specgen_core.text import quoted

from .program import Program
from .sandbox import CannotKnow, File, Sandbox

__all__ = ["command_problems"]

_SHELL = "/bin/sh"
_INTERPRETERS = 4  # of scripts by scripts: Linux, fs/exec.c, exec_binprm


def command_problems(
    request: Request, spec: oci.Spec, inputs: Path | None, *, copied: bool, look_at_command: bool
) -> Iterator[str]:
    """Yield why execve(2) of the command, or of the sandbox shell, would fail.

    Args:
        request: the request that the spec is of.
        spec: its config.json.
        inputs: the directory that becomes the bundle's inputs/; None if that stays empty.
        copied: by being copied, and not by a link.
        look_at_command: False where a diagnostic has said it of the command.
    """
    sandbox = Sandbox(request, spec, inputs, copied=copied)
    programs = {}
    command = spec.process.args[0]
    if look_at_command and "/" in command:
        programs[command] = f"the command {quoted(command)}"
    if request.constraints.provide_bin_sh:
        source = next(m.source for m in spec.mounts if m.destination == _SHELL)
        programs[_SHELL] = f"the sandbox shell {source}"
    for path, what in programs.items():
        if why := _why_not(sandbox, path):
            yield f"{what} {why}"


def _why_not(sandbox: Sandbox, path: str, scripts: int = 0) -> str:
    """Return why a program does not start; empty if it does, or if only the runtime can know."""
    try:
        file = sandbox.find(path)
    except CannotKnow:
        return ""
    except OSError as error:
        strerror = (error.strerror or "").lower()
        return f"is nothing to execute: {error.filename}, {strerror}. runc and crun fail"
    mode = stat.S_IMODE(file.status.st_mode)
    if stat.S_ISDIR(file.status.st_mode):
        return "is a directory: runc and crun fail (permission denied)"
    if not file.executable:
        return (
            f"may not be executed by the build (mode {mode:o}): runc and crun fail"
            " (permission denied)"
        )
    return _why_not_program(sandbox, file, file.program, scripts) if file.program else ""


def _why_not_program(sandbox: Sandbox, file: File, program: Program, scripts: int) -> str:
    if program.is_elf:
        if program.loader and _why_not(sandbox, program.loader):
            return (
                f"is linked dynamically, and the build will not have its {program.loader}:"
                f" {file.path} will not start (no such file or directory). Name a static one, such"
                " as --sandbox-shell /usr/bin/busybox, or add what it needs"
            )
        return ""
    if not program.is_script:
        return (
            "is neither an ELF file nor a script that begins with #! and its interpreter: runc"
            " and crun fail (exec format error)"
        )
    if program.interpreter.endswith("\r"):
        return (
            "is a script whose lines end in CR LF, and so does the name of its interpreter: runc"
            " and crun fail (no such file or directory). End its lines in LF"
        )
    if scripts < _INTERPRETERS and _why_not(sandbox, program.interpreter, scripts + 1):
        return (
            f"is a script for {quoted(program.interpreter)}, which cannot be executed in the"
            " sandbox: runc and crun fail (no such file or directory, or permission denied)."
            " Add it to the build's inputs"
        )
    return ""
