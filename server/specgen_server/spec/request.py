"""A BuildRequest message becomes a Request: validation that yields the domain type.

What comes out has been checked, so nothing downstream asks again. This is the only
room that reads the message's fields, and the only one that knows its rules.

Sources of the rules: tvix, build/src/proto/mod.rs (``BuildRequest::validate``) and
castore/src/nodes, and the comments of protos/tvix/build/protos/build.proto. Those
marked "stricter" are ours: there tvix panics, or yields what no runtime can start.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Generic, Literal, TypeVar

import msgspec
from google.protobuf.message import DecodeError, Message

from tvix.build.protos.build_pb2 import BuildRequest
from tvix.castore.protos.castore_pb2 import Node

from .memo import Memo
from .paths import nearest_above, path_problems
from .violations import UnreadableMessage, Violations, quoted
from .wire import view_of

__all__ = [
    "AdditionalFile",
    "Constraints",
    "EnvVar",
    "Input",
    "Output",
    "Request",
    "read_request",
]


class Input(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A node that is mounted into the sandbox."""

    name: str
    kind: Literal["directory", "file", "symlink"]


class EnvVar(msgspec.Struct, frozen=True, eq=False, gc=False):
    """An environment variable; ``entry`` is ``KEY=value``."""

    key: str
    entry: str


class Output(msgspec.Struct, frozen=True):
    """A path that the build must leave behind, and the nearest scratch path at or above it."""

    path: str
    scratch: str


class AdditionalFile(msgspec.Struct, frozen=True):
    """A file to be laid into the sandbox, and the nearest scratch path above it, if any."""

    path: str
    contents: bytes
    scratch: str | None


class Constraints(msgspec.Struct, frozen=True):
    """What the build wants of its host. The defaults are those of a request without any."""

    available_ro_paths: list[str] = []
    network_access: bool = False
    provide_bin_sh: bool = False


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A valid build request: what the spec depends on, and what its builder needs."""

    inputs: list[Input]
    command_args: list[str]
    working_dir: str
    scratch_paths: list[str]
    inputs_dir: str
    outputs: list[Output]
    environment: list[EnvVar]
    constraints: Constraints
    additional_files: list[AdditionalFile]
    wire_size: int
    """Length of the message, in bytes: no part of the request is longer."""


_View = view_of(BuildRequest, opaque=("inputs", "environment_vars"))


def read_request(message: BuildRequest | bytes) -> Request:
    """Read and validate a build request.

    Args:
        message: a BuildRequest, or its wire form.

    Raises:
        InvalidRequest: it breaks rules, all of which are listed.
        UnreadableMessage: the bytes are no BuildRequest.
    """
    wire = message.SerializeToString() if isinstance(message, Message) else message
    try:
        view = _View.FromString(wire)
    except DecodeError:
        raise UnreadableMessage(BuildRequest.DESCRIPTOR.full_name) from None

    violations = Violations()
    request = Request(
        inputs=_inputs(view.inputs, violations),
        command_args=_command_args(view.command_args, violations),
        working_dir=_directory("working_dir", view.working_dir, violations),
        scratch_paths=_scratch_paths(view.scratch_paths, violations),
        inputs_dir=_directory("inputs_dir", view.inputs_dir, violations),
        outputs=_outputs(view.outputs, view.scratch_paths, violations),
        environment=_environment(view.environment_vars, violations),
        constraints=_constraints(view, violations),
        additional_files=_additional_files(view.additional_files, view.scratch_paths, violations),
        wire_size=len(wire),
    )
    violations.raise_if_any()
    return request


# --- inputs ---------------------------------------------------------------------------

_NAME_BYTES = 255
_TARGET_BYTES = 4095
_DIGEST_BYTES = 32


def _inputs(elements: Iterable[bytes], violations: Violations) -> list[Input]:
    """Inputs MUST be sorted by their names, and a name MUST stand there once."""
    inputs = _elements("inputs", elements, _known_inputs, violations)
    names = [input_.name for input_ in inputs]
    _check_sorted("inputs", names, violations, by="by name")
    if len(set(names)) != len(names):
        twice = next(name for name, after in pairwise(sorted(names)) if name == after)
        violations.add("inputs", f"must not have a name twice, have {quoted(twice)}")
    return inputs


def _input(element: bytes) -> Input:
    """A node MUST be set, with a name that can be an entry of a directory."""
    try:
        node = Node.FromString(element)
    except DecodeError:
        raise _InvalidElement(("", "does not parse as a tvix.castore.v1.Node")) from None
    kind = node.WhichOneof("node")
    if kind is None:
        raise _InvalidElement(("", "has no node: set directory, file or symlink"))

    named = getattr(node, kind)
    problems = [(f".{kind}.name", problem) for problem in _name_problems(named.name)]
    if kind == "symlink":
        if not 1 <= len(named.target) <= _TARGET_BYTES:
            problem = f"must be 1 to {_TARGET_BYTES} bytes long, is {len(named.target)}"
            problems.append((".symlink.target", problem))
        if b"\0" in named.target:
            problems.append((".symlink.target", "must not contain a NUL byte"))
    elif len(named.digest) != _DIGEST_BYTES:
        problem = f"must be a BLAKE3 digest, {_DIGEST_BYTES} bytes long, is {len(named.digest)}"
        problems.append((f".{kind}.digest", problem))

    try:
        input_ = Input(named.name.decode(), kind)
    except UnicodeDecodeError:  # stricter: tvix panics
        raise _InvalidElement(*problems, (f".{kind}.name", "must be UTF-8")) from None
    if problems:
        raise _InvalidElement(*problems, stand_in=input_)
    return input_


def _name_problems(name: bytes) -> Iterable[str]:
    if not 1 <= len(name) <= _NAME_BYTES:
        yield f"must be 1 to {_NAME_BYTES} bytes long, is {len(name)}"
    if name in (b".", b".."):
        yield 'must not be "." or ".."'
    if b"/" in name:
        yield "must not contain a slash"
    if b"\0" in name:
        yield "must not contain a NUL byte"


# --- the command and its environment --------------------------------------------------


def _command_args(view: Iterable[str], violations: Violations) -> list[str]:
    """Stricter: there MUST be a command, and no argument MUST contain NUL, see execve(2)."""
    args = list(view)
    if not args:
        violations.add("command_args", "must name the command to run, is empty")
    for i, arg in enumerate(args):
        if "\0" in arg:
            violations.add(f"command_args[{i}]", "must not contain a NUL byte")
    return args


def _environment(elements: Iterable[bytes], violations: Violations) -> list[EnvVar]:
    """Environment variables MUST be sorted by their keys; equal keys may follow each other."""
    environment = _elements("environment_vars", elements, _known_env_vars, violations)
    keys = [env_var.key for env_var in environment]
    _check_sorted("environment_vars", keys, violations, by="by key")
    return environment


def _env_var(element: bytes) -> EnvVar:
    """A key MUST NOT be empty and MUST NOT contain ``=``."""
    try:
        env_var = BuildRequest.EnvVar.FromString(element)
    except DecodeError:
        raise _InvalidElement(
            ("", "does not parse as an EnvVar, or its key is not UTF-8")
        ) from None
    key = env_var.key
    problems = []
    if not key:
        problems.append((".key", "must not be empty"))
    if "=" in key:
        problems.append((".key", f'must not contain "=", is {quoted(key)}'))
    if "\0" in key:  # stricter
        problems.append((".key", "must not contain a NUL byte"))
    if b"\0" in env_var.value:  # stricter
        problems.append((".value", "must not contain a NUL byte"))
    value = ""
    try:
        value = env_var.value.decode()
    except UnicodeDecodeError as error:  # stricter: tvix panics
        problems.append((".value", f"must be UTF-8, is not at byte {error.start}"))
    read = EnvVar(key, f"{key}={value}")
    if problems:
        raise _InvalidElement(*problems, stand_in=read)
    return read


# --- paths ----------------------------------------------------------------------------


def _directory(field: str, path: str, violations: Violations) -> str:
    """A directory MUST be a clean relative path; empty is the sandbox's root."""
    if path:
        _check_path(field, path, violations)
    return path


def _scratch_paths(view: Iterable[str], violations: Violations) -> list[str]:
    """Scratch paths MUST be clean relative paths, and sorted. Stricter: none MUST be empty."""
    paths = list(view)
    for i, path in enumerate(paths):
        _check_path(f"scratch_paths[{i}]", path, violations)
    _check_sorted("scratch_paths", paths, violations)
    return paths


def _outputs(
    view: Iterable[str], scratch_paths: Iterable[str], violations: Violations
) -> list[Output]:
    """Outputs MUST be clean relative paths, and sorted.

    Stricter: none MUST be empty, and each MUST lie at or under a scratch path, since
    nothing else is writable.
    """
    paths = list(view)
    outputs = []
    for i, (path, scratch) in enumerate(zip(paths, nearest_above(paths, list(scratch_paths)))):
        if _check_path(f"outputs[{i}]", path, violations) and scratch is None:
            violations.add(
                f"outputs[{i}]", f"must lie at or under a scratch path, {quoted(path)} does not"
            )
        outputs.append(Output(path, scratch or ""))
    _check_sorted("outputs", paths, violations)
    return outputs


def _additional_files(
    view: Iterable[Any], scratch_paths: Iterable[str], violations: Violations
) -> list[AdditionalFile]:
    """Their paths MUST be clean relative paths, and sorted. Stricter: none MUST be empty."""
    files = list(view)
    if not files:
        return []
    paths = [file.path for file in files]
    for i, path in enumerate(paths):
        _check_path(f"additional_files[{i}].path", path, violations)
    _check_sorted("additional_files", paths, violations, by="by path")
    return [
        AdditionalFile(file.path, file.contents, scratch)
        for file, scratch in zip(files, nearest_above(paths, list(scratch_paths)))
    ]


def _constraints(view: Any, violations: Violations) -> Constraints:
    """Constraints, where set, MUST have a system; paths MUST be clean, absolute and sorted."""
    if not view.HasField("constraints"):
        return Constraints()
    constraints = view.constraints
    if not constraints.system:
        violations.add("constraints.system", "must not be empty where constraints is set")
    paths = list(constraints.available_ro_paths)
    field = "constraints.available_ro_paths"
    for i, path in enumerate(paths):
        if not path.startswith("/"):
            violations.add(f"{field}[{i}]", f"must be an absolute path, is {quoted(path)}")
        if path != "/":
            _check_path(f"{field}[{i}]", path.removeprefix("/"), violations)
    _check_sorted(field, paths, violations)
    return Constraints(paths, constraints.network_access, constraints.provide_bin_sh)


# --- what the rules share -------------------------------------------------------------


def _check_path(field: str, path: str, violations: Violations) -> bool:
    problems = path_problems(path)
    for problem in problems:
        violations.add(field, problem)
    return not problems


def _check_sorted(field: str, keys: list[str], violations: Violations, *, by: str = "") -> None:
    """Lists MUST be sorted by bytes; UTF-8 sorts as its code points do."""
    if keys != sorted(keys):
        before, after = next(pair for pair in pairwise(keys) if pair[0] > pair[1])
        violations.add(
            field,
            f"must be sorted{by and ' ' + by}, bytewise: "
            f"{quoted(after)} must not come after {quoted(before)}",
        )


T = TypeVar("T")


class _InvalidElement(Exception, Generic[T]):
    """An element of a repeated field breaks rules: ``(field within it, description)`` each.

    ``stand_in`` takes its place where the order of the elements is checked.
    """

    def __init__(self, *problems: tuple[str, str], stand_in: T | None = None) -> None:
        self.problems = problems
        self.stand_in = stand_in


def _elements(
    field: str, elements: Iterable[bytes], known: Memo[bytes, T], violations: Violations
) -> list[T]:
    """Read the elements of a repeated field, each by its bytes."""
    try:
        return list(map(known.__getitem__, elements))
    except _InvalidElement:
        pass  # once more, slowly, for all that is wrong
    read = []
    for i, element in enumerate(elements):
        try:
            read.append(known[element])
        except _InvalidElement as invalid:
            for field_within, description in invalid.problems:
                violations.add(f"{field}[{i}]{field_within}", description)
            if invalid.stand_in is not None:
                read.append(invalid.stand_in)
    return read


_KNOWN = 16_384  # some 10 MiB of each; more than the inputs of a large closure
_known_inputs = Memo(_input, limit=_KNOWN, longest=512)
_known_env_vars = Memo(_env_var, limit=_KNOWN, longest=512)
