"""Rules about the command, its environment and where it starts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from ..layout import shown
from ..paths import lies_in
from ..request import Request
from .rule import Build, Findings, Rules

RULES = Rules()

_ARG_BYTES = 128 * 1024  # execve(2), "Limits on size of arguments": MAX_ARG_STRLEN, NUL included
_ARGS_BYTES = 2 * 1024 * 1024  # a quarter of the usual 8 MiB of stack
_POINTER = 8


def _sizes(request: Request) -> Iterator[tuple[str, int]]:
    """Yield all that execve(2) copies: field and size, with the NUL byte at the end."""
    for i, arg in enumerate(request.command_args):
        yield f"command_args[{i}]", len(arg.encode()) + 1
    for i, variable in enumerate(request.environment):
        yield f"environment_vars[{i}].value", len(f"{variable.key}={variable.value}".encode()) + 1


@RULES.add(
    "argument-too-long",
    f"is {{size}} bytes long, and Linux takes at most {_ARG_BYTES - 1} in one argument or",
    'KEY=value: runc and crun fail with "argument list too long". Pass it in a file',
    "(additional_files)",
    proven_by=("test_argument_too_long", "test_variable_too_long"),
)
def _argument_too_long(build: Build) -> Findings:
    """An argument or KEY=value takes 131072 bytes or more."""
    for field, size in _sizes(build.request):
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
    total = len(build.request.command_args[0].encode()) + 1  # the file name, once more
    if not any(variable.key == "HOME" for variable in build.request.environment):
        total += len("HOME=/") + 1 + _POINTER  # both runtimes add it
    total += sum(size + _POINTER for _, size in _sizes(build.request))
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
    has_path = any(variable.key == "PATH" for variable in build.request.environment)
    if "/" not in build.request.command_args[0] and not has_path:
        yield "command_args[0]", {}


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
    layout, path = build.layout, f"/{build.request.working_dir}"
    if path != "/proc" and path != "/sys" and (lies_in(path, "/proc") or lies_in(path, "/sys")):
        effect = (
            'where it is not there already, runc cannot make it and crun cannot enter it ("no such '
            'file or directory", "read-only file system")'
        )
        yield "working_dir", _words(path, "in a file system of the kernel's", effect)
    files = [layout.what(n) for n in layout.over(path) if layout.kind(n) in ("file", "host_file")]
    files += [
        conflict.file_for.what
        for conflict in build.skeleton.conflicts
        if conflict.directory_for.field == "working_dir"
        and not conflict.file_for.field.startswith("additional_files")  # has a rule of its own
    ]
    if files:
        effect = 'runc and crun fail ("not a directory")'
        yield "working_dir", _words(path, f"at or in {files[-1]}, a file", effect)


def _words(path: str, where: str, effect: str) -> dict[str, str]:
    return {"path": shown(path), "where": where, "effect": effect}
