"""Whether a build's command, and the /bin/sh that it is given, can be executed on this host."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from specgen_core.text import quoted

from .host_rule import HostBuild, HostFindings, HostRules
from .program import Program
from .sandbox import CannotKnow, File, Sandbox

RULES = HostRules()

_SHELL = "/bin/sh"
_INTERPRETERS = 4  # of scripts by scripts: Linux, fs/exec.c, exec_binprm


def _add(code: str, *sentence: str, when: str, proven_by: tuple[str, ...]) -> None:
    """Add the check that finds what execve(2) fails of for this reason."""

    def find(build: HostBuild) -> HostFindings:
        for what, (why, words) in _failures(build):
            if why == code:
                yield {"what": what, **words}

    find.__doc__ = when
    RULES.add(code, *sentence, proven_by=proven_by)(find)


_add(
    "no-program",
    "{what} is nothing to execute: {place}, {error}. runc and crun fail",
    when="The command or the sandbox shell is not there.",
    proven_by=("test_a_command_that_is_not_there",),
)

_add(
    "program-is-directory",
    "{what} is a directory: runc and crun fail (permission denied)",
    when="The command or the sandbox shell is a directory.",
    proven_by=("test_a_sandbox_shell_that_cannot_start",),
)

_add(
    "closed-program",
    "{what} may not be executed by the build (mode {mode:o}): runc and crun fail (permission",
    "denied)",
    when="The mode of the command or the sandbox shell does not let the build execute it.",
    proven_by=("test_a_command_that_cannot_start", "test_a_sandbox_shell_that_cannot_start"),
)

_add(
    "no-loader",
    "{what} is linked dynamically, and the build will not have its {loader}: {place} will not",
    'start (runc: "no such file or directory", crun: "missing dynamic library?"). Name a static',
    "one, such as --sandbox-shell /usr/bin/busybox, or add what it needs",
    when="One of them is linked dynamically, as a host's /bin/sh is, and its loader is not in the"
    " sandbox.",
    proven_by=("test_a_command_that_cannot_start", "test_dynamic_shell"),
)

_add(
    "no-program-format",
    "{what} is neither an ELF file nor a script that begins with #! and its interpreter: runc and",
    "crun fail (exec format error)",
    when="One of them is neither an ELF file nor begins with ``#!``.",
    proven_by=("test_a_command_that_cannot_start", "test_a_sandbox_shell_that_cannot_start"),
)

_add(
    "script-in-cr-lf",
    "{what} is a script whose lines end in CR LF, and so does the name of its interpreter: runc",
    "and crun fail (no such file or directory). End its lines in LF",
    when="One of them is a script whose first line ends in CR LF, just behind its interpreter.",
    proven_by=("test_a_command_that_cannot_start",),
)

_add(
    "no-interpreter",
    "{what} is a script for {interpreter}, which cannot be executed in the sandbox: runc and crun",
    "fail (no such file or directory, or permission denied). Add it to the build's inputs",
    when="One of them is a script whose interpreter cannot be executed, for one of these reasons.",
    proven_by=("test_a_command_that_cannot_start", "test_a_sandbox_shell_that_cannot_start"),
)

_Failure = tuple[str, dict[str, Any]]
"""Why execve(2) fails: the code, and what its sentence wants but for ``what``."""


@lru_cache(maxsize=1)  # for all checks of a build
def _failures(build: HostBuild) -> list[tuple[str, _Failure]]:
    """Return why the command, and the sandbox shell, cannot be executed."""
    sandbox = Sandbox(build.request, build.spec, build.inputs, copied=build.copied)
    programs = _programs(build)
    return [(what, why) for path, what in programs if (why := _why_not(sandbox, path))]


def _programs(build: HostBuild) -> Iterator[tuple[str, str]]:
    command = build.spec.process.args[0]
    has_shell = build.request.constraints.provide_bin_sh
    # a diagnostic may have said it of the command
    if (
        "unusable-command" not in build.said
        and "/" in command
        and not (has_shell and command == _SHELL)
    ):
        yield command, f"the command {quoted(command)}"
    shells = [mount.source for mount in build.spec.mounts if mount.destination == _SHELL]
    for source in shells[-1:] if has_shell else ():
        yield _SHELL, f"the sandbox shell {source}"


def _why_not(sandbox: Sandbox, path: str, scripts: int = 0) -> _Failure | None:
    """Return why a program does not start; None if it does, or if only the runtime can know."""
    try:
        file = sandbox.find(path)
    except CannotKnow:
        return None
    except OSError as error:
        strerror = (error.strerror or "").lower()
        return "no-program", {"place": error.filename, "error": strerror}
    if stat.S_ISDIR(file.status.st_mode):
        return "program-is-directory", {}
    if not file.executable:
        return "closed-program", {"mode": stat.S_IMODE(file.status.st_mode)}
    return _why_not_program(sandbox, file, file.program, scripts) if file.program else None


def _why_not_program(
    sandbox: Sandbox, file: File, program: Program, scripts: int
) -> _Failure | None:
    if program.is_elf:
        if program.loader and _why_not(sandbox, program.loader):
            return "no-loader", {"loader": program.loader, "place": file.path}
        return None
    if not program.is_script:
        return "no-program-format", {}
    if program.interpreter.endswith("\r"):
        return "script-in-cr-lf", {}
    if scripts < _INTERPRETERS and _why_not(sandbox, program.interpreter, scripts + 1):
        return "no-interpreter", {"interpreter": quoted(program.interpreter)}
    return None
