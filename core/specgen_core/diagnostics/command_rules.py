"""Rules about the command, its environment and where it starts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from posixpath import normpath

from ..layout import shown
from ..paths import lies_in
from ..request import Request
from ..spec import BUILD_UID
from ..text import MOST_BYTES_A_CHARACTER
from .rule import Build, Findings, Rules

RULES = Rules()

_ARG_BYTES = 128 * 1024  # execve(2), "Limits on size of arguments": MAX_ARG_STRLEN, NUL included
_ARGS_BYTES = 2 * 1024 * 1024  # a quarter of the usual 8 MiB of stack
_POINTER = 8
_HOME_BYTES = len("HOME=/") + 1 + _POINTER


def _sizes(build: Build) -> Iterator[tuple[str, int]]:
    """Yield all that execve(2) copies: field and size, with the NUL byte at the end."""
    for i, arg in enumerate(build.spec.process.args):
        yield f"command_args[{i}]", len(arg.encode()) + 1
    for i, variable in enumerate(build.spec.process.env):
        yield f"environment_vars[{i}].value", len(variable.encode()) + 1


def _most_bytes(build: Build) -> int:
    """Return a number of bytes that arguments and environment do not take more than."""
    process = build.spec.process
    chars = sum(map(len, process.args)) + sum(map(len, process.env))
    return chars * MOST_BYTES_A_CHARACTER + (len(process.args) + len(process.env)) * (_POINTER + 1)


@RULES.add(
    "argument-too-long",
    f"is {{size}} bytes long, and Linux takes at most {_ARG_BYTES - 1} in one argument or",
    'KEY=value: runc and crun fail with "argument list too long". Pass it in a file',
    "(additional_files)",
    proven_by=("test_argument_too_long", "test_variable_too_long"),
)
def _argument_too_long(build: Build) -> Findings:
    """An argument or KEY=value takes 131072 bytes or more."""
    if _most_bytes(build) <= _ARG_BYTES:
        return
    for field, size in _sizes(build):
        if size > _ARG_BYTES:
            yield field, {"size": size - 1}


@RULES.add(
    "arguments-too-long",
    f"arguments and environment take {{total}} bytes, and Linux takes {_ARGS_BYTES} with the usual",
    'stack limit of 8 MiB: runc and crun fail with "argument list too long". Pass some of it in',
    "files (additional_files)",
    proven_by=("test_arguments_too_long",),
)
def _arguments_too_long(build: Build) -> Findings:
    """Arguments and environment, with a pointer and a NUL each, take more than 2 MiB."""
    if 2 * _most_bytes(build) + _HOME_BYTES <= _ARGS_BYTES:
        return
    total = len(build.request.command_args[0].encode()) + 1  # the file name, once more
    if not any(variable.key == "HOME" for variable in build.request.environment):
        total += _HOME_BYTES  # both runtimes add it
    total += sum(size + _POINTER for _, size in _sizes(build))
    if total > _ARGS_BYTES:
        yield "command_args", {"total": total}


@RULES.add(
    "command-without-path",
    "has no slash, and the environment has no PATH to find it in: on runc and crun it is",
    '"not found in $PATH". Give its absolute path, or a PATH',
    proven_by=("test_command_without_path",),
)
def _command_without_path(build: Build) -> Findings:
    """The command has no slash, and there is no PATH in the environment."""
    command = build.request.command_args[0]
    is_name = command and "/" not in command and not command.startswith("builtin:")
    if is_name and _path_of(build.request) is None:
        yield "command_args[0]", {}


def _path_of(request: Request) -> str | None:
    """Return PATH, of which the last one counts."""
    found = [variable.value for variable in request.environment if variable.key == "PATH"]
    return found[-1] if found else None


@RULES.add(
    "unusable-command",
    "{command} {why}: runc and crun fail ({words}). {advice}",
    proven_by=(
        "test_unusable_command",
        "test_a_shell_that_was_not_asked_for",
        "test_command_that_path_does_not_lead_to",
    ),
)
def _unusable_command(build: Build) -> Findings:
    """The command cannot be in the sandbox, or cannot be executed there.

    It is empty, or a ``builtin:`` of Nix; it leads to nothing that is mounted or laid there, to a
    directory, into a file, or to a file that is not executable; or no directory of PATH has it.
    """
    command = build.request.command_args[0]
    path = _path_of(build.request)
    why: tuple[str, str, str] | None = None
    if not command:
        why = ("is empty", _IS_EMPTY, "Name the program to run")
    elif command.startswith("builtin:"):
        why = ("is a builder that Nix has built in", _NOT_IN_PATH, "Let Nix run it")
    elif "/" in command:
        why = _problem_of(build, command)
    elif path is not None and _is_in_none_of(build, command, path):
        where = f"is in no directory of PATH ({shown(path)}), as far as they are in the sandbox"
        why = (where, _NOT_IN_PATH, "Give its absolute path, or a PATH that leads to it")
    if why:
        words = dict(zip(("why", "words", "advice"), why))
        yield "command_args[0]", {"command": shown(command) or "the command", **words}


_NOT_FOUND = '"no such file or directory"'
_IS_EMPTY = 'runc "not found in $PATH", crun "Operation not permitted"'
_NOT_IN_PATH = '"not found in $PATH"'
_NOT_EXECUTABLE = '"permission denied"'
_IS_DIRECTORY = 'runc "permission denied", crun "Operation not permitted"'


def _is_in_none_of(build: Build, command: str, path: str) -> bool:
    if len(path) > _ARG_BYTES:
        return False  # execve(2) fails anyway
    return all(_problem_of(build, f"{d}/{command}") for d in dict.fromkeys(path.split(":")))


def _problem_of(build: Build, command: str) -> tuple[str, str, str] | None:
    """Return why a command cannot be executed, what the runtimes say, and what to do."""
    layout = build.layout
    path = normpath(command if command.startswith("/") else f"{build.working_dir}/{command}")
    path = path.replace("//", "/", 1) if path.startswith("//") else path
    number = layout.seen_at(path)
    kind = None if number is None else layout.kind(number)
    if number is not None and kind not in ("scratch", "runtime"):
        at_it = layout.place(number) == path
        if kind in ("file", "host_file") and not at_it:
            return (f"lies in {layout.what(number)}, a file", '"not a directory"', _NAME_ANOTHER)
        if kind == "directory" and at_it:
            return (f"is {layout.what(number)}, a directory", _IS_DIRECTORY, _NAME_ANOTHER)
        if kind == "file" and build.request.command_is_plain_file:
            return (f"is {layout.what(number)}, not executable", _NOT_EXECUTABLE, _SET_EXECUTABLE)
        return None  # what is in there, only the builder knows
    if number is not None and kind == "runtime" and not layout.is_tmp(number):
        return None  # what is in there, only the runtime knows
    if path in {f"/{file.path}" for file in build.request.additional_files}:
        return ("is an additional file, not executable", _NOT_EXECUTABLE, _RUN_BY_SHELL)
    if path == "/bin/sh":
        return ("is not in the sandbox", _NOT_FOUND, "Set provide_bin_sh, or name an input's shell")
    return ("is not in the sandbox when the build starts", _NOT_FOUND, _NAME_ANOTHER)


_NAME_ANOTHER = "Name a program that an input or a read-only path has"
_SET_EXECUTABLE = "Set executable in its node"
_RUN_BY_SHELL = "Have a shell run it"


@RULES.add(
    "equal-variables",
    "{key} is set more than once: runc and crun give the build the last one. Leave the others out",
    proven_by=("test_equal_variables",),
)
def _equal_variables(build: Build) -> Findings:
    """Two environment variables have the same key."""
    for i, (one, next_) in enumerate(pairwise(build.request.environment)):
        if one.key == next_.key:
            yield f"environment_vars[{i}].key", {"key": shown(one.key)}


@RULES.add(
    "unusable-working-dir",
    "{path} lies {where}: {effect}. Choose another",
    proven_by=("test_unusable_working_dir",),
)
def _unusable_working_dir(build: Build) -> Findings:
    """``working_dir`` lies at or in a file that is mounted or laid, or under /proc or /sys."""
    layout, path = build.layout, build.working_dir
    if path != "/proc" and path != "/sys" and (lies_in(path, "/proc") or lies_in(path, "/sys")):
        effect = (
            'where it is not there already, runc cannot make it and crun cannot enter it ("no such '
            'file or directory", "read-only file system")'
        )
        yield "working_dir", _words(path, "in a file system of the kernel's", effect)
    files = [layout.what(n) for n in layout.over(path) if layout.kind(n) in ("file", "host_file")]
    files += [
        conflict.file_for.what
        for conflict in build.conflicts
        if conflict.directory_for.field == "working_dir"
        and not conflict.file_for.field.startswith("additional_files")  # has a rule of its own
    ]
    if files:
        effect = 'runc and crun fail ("not a directory")'
        yield "working_dir", _words(path, f"at or in {files[-1]}, a file", effect)


def _words(path: str, where: str, effect: str) -> dict[str, str]:
    return {"path": shown(path), "where": where, "effect": effect}


@RULES.add(
    "read-only-working-dir",
    "{path} lies {where}, which is read-only: on runc and crun a build that writes to where it",
    'starts fails ("Read-only file system"){more}. Choose a place in a scratch path',
    proven_by=("test_read_only_working_dir",),
)
def _read_only_working_dir(build: Build) -> Findings:
    """``working_dir`` lies in no scratch path: in the sandbox's root, an input or a host path."""
    layout, path = build.layout, build.working_dir
    number = layout.seen_at(path)
    kind = None if number is None else layout.kind(number)
    if number is None:
        yield "working_dir", {"path": shown(path), "where": "in the sandbox's root", "more": ""}
    elif kind in ("directory", "symlink", "ro_path"):
        more = (
            ', and where there is no such directory, runc cannot make it ("read-only file system") '
            "and crun makes it in the builder's own inputs"
        )
        words = {"path": shown(path), "where": f"at or in {layout.what(number)}", "more": more}
        yield "working_dir", words


TMP_VARIABLES = ("TEMP", "TEMPDIR", "TMP", "TMPDIR")


@RULES.add(
    "unwritable-tmp",
    "{path} lies in /tmp, where the build may not write (root's, mode {mode}): on runc and crun",
    'uid {uid} gets "Permission denied". Name a scratch path, or set tmp_mode to 1777',
    proven_by=("test_unwritable_tmp",),
)
def _unwritable_tmp(build: Build) -> Findings:
    """``working_dir`` or TMPDIR, TMP, TEMP or TEMPDIR lead into a /tmp that is closed.

    Not if the build has CAP_DAC_OVERRIDE, as in a rootless spec that keeps its capabilities.
    """
    if build.may_use_tmp(0o3):
        return
    places = [("working_dir", build.working_dir)]
    for i, variable in enumerate(build.request.environment):
        if variable.key in TMP_VARIABLES and variable.value.startswith("/"):
            places.append((f"environment_vars[{i}].value", normpath(variable.value)))
    for field, path in places:
        number = build.layout.seen_at(path)
        if number is not None and build.layout.is_tmp(number):
            words = {"path": shown(path), "mode": build.options.tmp_mode, "uid": BUILD_UID}
            yield field, words
