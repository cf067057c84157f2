"""BuildRequest -> Request: every rule of a build request, in the order of its fields.

Those of inputs and variables stand in elements.py; no other module reads the message. All broken
rules are reported together. Sources: tvix, build/src/proto/mod.rs (``TryFrom<BuildRequest>``)
and castore/src/proto/mod.rs, and the comments of protos/tvix/build/protos/build.proto. Rules
marked "stricter" are ours: there tvix panics, or makes a spec that no runtime can start. Laxer
than tvix: outputs and available_ro_paths may come in any order, as today's snix coordinators
send them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from tvix.build.protos.build_pb2 import BuildRequest
from tvix.castore.protos.castore_pb2 import Node

from .elements import UNPARSED_NODE, UNPARSED_VARIABLE, read_environment, read_inputs
from .paths import nearest_above, path_problems
from .request import AdditionalFile, Constraints, InputKind, Output, Request
from .text import quoted
from .violations import NO_NUL, UnreadableMessage, Violations
from .wire import view_of

__all__ = ["read_request"]

_M = TypeVar("_M", bound=Message)


def read_request(message: BuildRequest | bytes) -> Request:
    """Read and validate a build request.

    Args:
        message: a BuildRequest, or its wire form.

    Raises:
        InvalidRequest: it breaks rules, all of which are listed.
        UnreadableMessage: the bytes are no BuildRequest.
    """
    if not isinstance(message, bytes):
        return _read(message, message.inputs, message.environment_vars)
    try:
        parsed = BuildRequest.FromString(message)
    except DecodeError:
        return _read_in_parts(message)
    return _read(parsed, parsed.inputs, parsed.environment_vars)


_View = view_of(BuildRequest, opaque=("inputs", "environment_vars"))


def _read_in_parts(wire: bytes) -> Request:
    """Read a request that does not parse as a whole, to name the elements that do not."""
    try:
        view = _View.FromString(wire)
    except DecodeError:
        raise UnreadableMessage(BuildRequest.DESCRIPTOR.full_name) from None
    return _read(
        view,
        [_parsed(element, UNPARSED_NODE) for element in view.inputs],
        [_parsed(element, UNPARSED_VARIABLE) for element in view.environment_vars],
    )


def _parsed(element: bytes, otherwise: _M) -> _M:
    """Return the message that these bytes are, or what stands for one that does not parse."""
    try:
        return otherwise.FromString(element)
    except DecodeError:
        return otherwise


def _read(
    message: Any,
    nodes: Sequence[Node],
    variables: Sequence[BuildRequest.EnvVar],
) -> Request:
    broken = Violations()
    scratch_paths = message.scratch_paths[:]
    inputs = read_inputs(nodes, broken)
    args = _command_args(message.command_args[:], broken)
    request = Request(
        inputs=inputs,
        command_args=args,
        working_dir=_directory("working_dir", message.working_dir, broken),
        scratch_paths=_scratch_paths(scratch_paths, broken),
        inputs_dir=_directory("inputs_dir", message.inputs_dir, broken),
        outputs=_outputs(message.outputs[:], scratch_paths, broken),
        environment=read_environment(variables, broken),
        constraints=_constraints(message, broken),
        additional_files=_additional_files(message.additional_files, broken),
        command_is_plain_file=_is_plain_file(args, message.inputs_dir, inputs, nodes),
    )
    broken.raise_if_any()
    return request


# --- the command, its directories and what it leaves behind ---------------------------


def _command_args(args: list[str], broken: Violations) -> list[str]:
    """Stricter: there MUST be a command, and an argument MUST NOT contain NUL, see execve(2)."""
    if not args:
        broken.add("command_args", "must name the command to run, is empty")
    for i, arg in enumerate(args):
        if "\0" in arg:
            broken.add(f"command_args[{i}]", NO_NUL)
    return args


def _is_plain_file(
    args: list[str], inputs_dir: str, inputs: dict[str, InputKind], nodes: Sequence[Node]
) -> bool:
    """Whether the command is an input that is a file, and not executable."""
    directory = f"/{inputs_dir}/" if inputs_dir else "/"
    name = args[0].removeprefix(directory) if args and args[0].startswith(directory) else ""
    if inputs.get(name) != "file" or len(inputs) != len(nodes):
        return False
    return not nodes[[*inputs].index(name)].file.executable


def _directory(field: str, path: str, broken: Violations) -> str:
    """A directory MUST be a clean relative path; empty is the sandbox's root."""
    if path:
        _check_path(field, path, broken)
    return path


def _scratch_paths(paths: list[str], broken: Violations) -> list[str]:
    """Scratch paths MUST be clean relative paths, and sorted. Stricter: none may be empty."""
    for i, path in enumerate(paths):
        _check_path(f"scratch_paths[{i}]", path, broken)
    broken.check_sorted("scratch_paths", paths)
    return paths


def _outputs(paths: list[str], scratch_paths: list[str], broken: Violations) -> list[Output]:
    """Outputs MUST be clean relative paths.

    Stricter: none may be empty, and each MUST lie at or under a scratch path, since nothing
    else is writable.
    """
    nearest = nearest_above(paths, scratch_paths)
    for i, (path, scratch) in enumerate(zip(paths, nearest)):
        if _check_path(f"outputs[{i}]", path, broken) and scratch is None:
            broken.add(
                f"outputs[{i}]", f"must lie at or under a scratch path, {quoted(path)} does not"
            )
    return [Output(path, scratch or "") for path, scratch in zip(paths, nearest)]


# --- environment, constraints and files -----------------------------------------------


def _constraints(message: BuildRequest, broken: Violations) -> Constraints:
    """Constraints, where set, MUST have a system; paths MUST be clean and absolute."""
    if not message.HasField("constraints"):
        return Constraints()
    constraints = message.constraints
    if not constraints.system:
        broken.add("constraints.system", "must not be empty where constraints is set")
    paths = constraints.available_ro_paths[:]
    for i, path in enumerate(paths):
        _check_path(f"constraints.available_ro_paths[{i}]", path, broken, absolute=True)
    return Constraints(
        system=constraints.system,
        available_ro_paths=tuple(paths),
        network_access=constraints.network_access,
        provide_bin_sh=constraints.provide_bin_sh,
    )


def _additional_files(
    files: Sequence[BuildRequest.AdditionalFile], broken: Violations
) -> list[AdditionalFile]:
    """Their paths MUST be clean relative paths, and sorted. Stricter: none may be empty."""
    read = [AdditionalFile(file.path, file.contents) for file in files]
    for i, file in enumerate(read):
        _check_path(f"additional_files[{i}].path", file.path, broken)
    broken.check_sorted("additional_files", [file.path for file in read], by="by path")
    return read


# --- what the rules share -------------------------------------------------------------


def _check_path(field: str, path: str, broken: Violations, *, absolute: bool = False) -> bool:
    problems = path_problems(path, absolute=absolute)
    for problem in problems:
        broken.add(field, problem)
    return not problems
