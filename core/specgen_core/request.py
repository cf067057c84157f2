"""A BuildRequest message becomes a Request: validation that yields the domain type.

What comes out has been checked, so nothing downstream asks again. This is the only
room that reads the message's fields, and the only one that knows its rules.

Sources of the rules: tvix, build/src/proto/mod.rs (``BuildRequest::validate``) and
castore/src/nodes, and the comments of protos/tvix/build/protos/build.proto. Those
marked "stricter" are ours: there tvix panics, or yields what no runtime can start.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Any, Generic, Literal, TypeAlias, TypeVar, cast

import msgspec
from google.protobuf.message import DecodeError

from tvix.build.protos.build_pb2 import BuildRequest
from tvix.castore.protos.castore_pb2 import Node

from . import oci
from .memo import Memo
from .paths import Roots, all_clean, path_problems
from .violations import InvalidRequest, UnreadableMessage, Violation, Violations, quoted
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


InputKind: TypeAlias = Literal["directory", "file", "symlink"]


class Input(msgspec.Struct, frozen=True):
    """A node that is mounted into the sandbox."""

    name: str
    kind: InputKind


class EnvVar(msgspec.Struct, frozen=True, eq=False, gc=False):
    """An environment variable."""

    key: str
    json: bytes
    """``KEY=value`` as JSON, which is all that most builds want of it."""

    @property
    def entry(self) -> str:
        """``KEY=value``."""
        return _entry(self.json)


_entry = msgspec.json.Decoder(str).decode


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

    available_ro_paths: tuple[str, ...] = ()
    network_access: bool = False
    provide_bin_sh: bool = False


KNOWN_SANDBOXES = 256
LARGEST_SANDBOX = 4096  # bytes; what is made of it is several times as large


class Sandbox(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What a build sees besides its inputs.

    The builds of one coordinator differ in little of it, so it is known by what the wire
    has of it, and there is one object for all builds that have the same: what is made of
    it downstream is made once.
    """

    working_dir: str
    inputs_dir: str
    scratch_paths: tuple[str, ...]
    constraints: Constraints
    scratch: Roots
    """The scratch paths again, to ask what lies under them."""
    size: int
    """About how many bytes are in it: whether to keep what is made of it."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A valid build request: what the spec depends on, and what its builder needs."""

    sandbox: Sandbox
    input_names: list[str]
    """Sorted, and each stands there once."""
    input_elements: list[bytes]
    """The nodes themselves, in their wire form."""
    symlinks: list[int]
    """Which of the inputs are symlinks: their indices."""
    command_args: list[str]
    outputs: list[Output]
    environment: list[EnvVar]
    additional_files: list[AdditionalFile]
    wire_size: int
    """Length of the message, in bytes: no part of the request is longer."""

    @property
    def inputs(self) -> list[Input]:
        """The inputs, read anew: the spec hangs on their names alone."""
        return [Input(name, self.kind_of_input(i)) for i, name in enumerate(self.input_names)]

    def kind_of_input(self, index: int) -> InputKind:
        """Return what the input at this index is."""
        kind = Node.FromString(self.input_elements[index]).WhichOneof("node")
        return cast(InputKind, kind)

    @property
    def working_dir(self) -> str:
        """Where the command starts."""
        return self.sandbox.working_dir

    @property
    def inputs_dir(self) -> str:
        """Where the inputs lie."""
        return self.sandbox.inputs_dir

    @property
    def scratch_paths(self) -> tuple[str, ...]:
        """Where the build may write."""
        return self.sandbox.scratch_paths

    @property
    def constraints(self) -> Constraints:
        """What the build wants of its host."""
        return self.sandbox.constraints


_SandboxParts: TypeAlias = tuple[str, str, tuple[str, ...], tuple[bytes, ...]]
"""working_dir, inputs_dir, scratch_paths, and what occurs of constraints, unparsed."""

_View = view_of(BuildRequest, opaque=("inputs", "environment_vars"), merged=("constraints",))


def read_request(message: BuildRequest | bytes) -> Request:
    """Read and validate a build request.

    Args:
        message: a BuildRequest, or its wire form.

    Raises:
        InvalidRequest: it breaks rules, all of which are listed.
        UnreadableMessage: the bytes are no BuildRequest.
    """
    wire = message if isinstance(message, bytes) else message.SerializeToString()
    try:
        view = _View.FromString(wire)
    except DecodeError:
        raise UnreadableMessage(BuildRequest.DESCRIPTOR.full_name) from None

    # A slice is a list of the elements, in half the time that list() takes for it.
    of_sandbox = (
        view.working_dir,
        view.inputs_dir,
        tuple(view.scratch_paths[:]),
        tuple(view.constraints[:]),
    )
    return _read_sound(view, of_sandbox, len(wire)) or _read_any(view, of_sandbox, len(wire))


def _read_sound(view: Any, of_sandbox: _SandboxParts, size: int) -> Request | None:
    """Return the request if it breaks no rule and no input is a symlink: true of nearly all.

    It asks of each list as a whole what ``_read_any`` asks of its elements one by one, in
    half of the time: 15 us for 60 inputs instead of 28. And all in one function: what runs
    once a call finds the processor's caches full of gRPC, and takes several times as long
    in a server as it does in a loop. tests/test_fast_paths.py holds the two to each other.
    """
    elements = view.inputs[:]
    args = view.command_args[:]
    paths = view.outputs[:]
    try:
        sandbox = _known_sandboxes[of_sandbox]
        names = [*map(_known_inputs.over(elements), elements)]
        variables = view.environment_vars[:]
        environment = [*map(_known_env_vars.over(variables), variables)]
        files = view.additional_files
        additional_files = _sound_files(files, sandbox.scratch) if files else []
    except (InvalidRequest, _OddElement):
        return None
    keys = [*map(_key_of, environment)]
    above = sandbox.scratch.nearest_above(paths)
    if (
        names != sorted(names)
        or len(set(names)) != len(names)
        or keys != sorted(keys)
        or paths != sorted(paths)
        or not all_clean(paths)
        or None in above
        or not args
        or "\0" in "".join(args)
    ):
        return None
    return Request(
        sandbox=sandbox,
        input_names=names,
        input_elements=elements,
        symlinks=[],
        command_args=args,
        outputs=[Output(path, scratch or "") for path, scratch in zip(paths, above)],
        environment=environment,
        additional_files=additional_files,
        wire_size=size,
    )


def _read_any(view: Any, of_sandbox: _SandboxParts, size: int) -> Request:
    """Return the request, or raise InvalidRequest with all that is wrong."""
    violations = Violations()
    sandbox = _sandbox(of_sandbox, violations)
    elements = view.inputs[:]
    names, symlinks = _inputs(elements, violations)
    request = Request(
        sandbox=sandbox,
        input_names=names,
        input_elements=elements,
        symlinks=symlinks,
        command_args=_command_args(view.command_args[:], violations),
        outputs=_outputs(view.outputs[:], sandbox.scratch, violations),
        environment=_environment(view.environment_vars[:], violations),
        additional_files=_additional_files(view.additional_files, sandbox.scratch, violations),
        wire_size=size,
    )
    violations.raise_if_any(order=_field_number)
    return request


def _field_number(violation: Violation) -> int:
    name = _FIELD_NAME(violation.field)
    return BuildRequest.DESCRIPTOR.fields_by_name[name[0]].number if name else 0


_FIELD_NAME = re.compile(r"\w+").match


# --- inputs ---------------------------------------------------------------------------

_NAME_BYTES = 255
_TARGET_BYTES = 4095
_DIGEST_BYTES = 32


def _inputs(elements: list[bytes], violations: Violations) -> tuple[list[str], list[int]]:
    """Inputs MUST be sorted by their names, and a name MUST stand there once.

    Returns their names, and the indices of the symlinks.
    """
    names, symlinks = _elements("inputs", elements, _known_inputs, violations)
    _check_sorted("inputs", names, violations, by="by name")
    if len(set(names)) != len(names):
        twice = next(name for name, after in pairwise(sorted(names)) if name == after)
        violations.add("inputs", f"must not have a name twice, have {quoted(twice)}")
    return names, symlinks


_SOUND_NAME = re.compile(rb"(?!\.{1,2}\Z)[^/\0]{1,%d}" % _NAME_BYTES).fullmatch


def _input_name(element: bytes) -> str:
    """A node MUST be set, with a name that can be an entry of a directory."""
    try:
        node = Node.FromString(element)
    except DecodeError:
        raise _OddElement(("", "does not parse as a tvix.castore.v1.Node")) from None
    kind = node.WhichOneof("node")
    if kind is None:
        raise _OddElement(("", "has no node: set directory, file or symlink"))

    named = getattr(node, kind)
    name = named.name
    problems = []
    if not _SOUND_NAME(name):
        problems += [(f".{kind}.name", problem) for problem in _name_problems(name)]
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
        read: str = name.decode()
    except UnicodeDecodeError:  # stricter: tvix panics
        raise _OddElement(*problems, (f".{kind}.name", "must be UTF-8")) from None
    if problems or kind == "symlink":
        raise _OddElement(*problems, read=read)
    return read


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


def _command_args(args: list[str], violations: Violations) -> list[str]:
    """Stricter: there MUST be a command, and no argument MUST contain NUL, see execve(2)."""
    if not args:
        violations.add("command_args", "must name the command to run, is empty")
    for i, arg in enumerate(args):
        if "\0" in arg:
            violations.add(f"command_args[{i}]", "must not contain a NUL byte")
    return args


def _environment(elements: list[bytes], violations: Violations) -> list[EnvVar]:
    """Environment variables MUST be sorted by their keys; equal keys may follow each other."""
    environment, _ = _elements("environment_vars", elements, _known_env_vars, violations)
    _check_sorted("environment_vars", [e.key for e in environment], violations, by="by key")
    return environment


def _env_var(element: bytes) -> EnvVar:
    """A key MUST NOT be empty and MUST NOT contain ``=``."""
    try:
        message = BuildRequest.EnvVar.FromString(element)
    except DecodeError:
        raise _OddElement(("", "does not parse as an EnvVar, or its key is not UTF-8")) from None
    key = message.key
    problems = []
    if not key:
        problems.append((".key", "must not be empty"))
    if "=" in key:
        problems.append((".key", f'must not contain "=", is {quoted(key)}'))
    if "\0" in key:  # stricter
        problems.append((".key", "must not contain a NUL byte"))
    if b"\0" in message.value:  # stricter
        problems.append((".value", "must not contain a NUL byte"))
    value = ""
    try:
        value = message.value.decode()
    except UnicodeDecodeError as error:  # stricter: tvix panics
        problems.append((".value", f"must be UTF-8, is not at byte {error.start}"))
    env_var = EnvVar(key, oci.encode(f"{key}={value}"))
    if problems:
        raise _OddElement(*problems, read=env_var)
    return env_var


# --- the sandbox ----------------------------------------------------------------------


def _sandbox(parts: _SandboxParts, violations: Violations) -> Sandbox:
    try:
        return _known_sandboxes[parts]
    except InvalidRequest as invalid:
        violations.add_all(invalid)
    return Sandbox(
        working_dir="",
        inputs_dir="",
        scratch_paths=(),
        constraints=Constraints(),
        scratch=Roots(parts[2]),
        size=_size_of(parts),
    )


def _read_sandbox(parts: _SandboxParts) -> Sandbox:
    working_dir, inputs_dir, scratch_paths, constraints = parts
    violations = Violations()
    sandbox = Sandbox(
        working_dir=_directory("working_dir", working_dir, violations),
        inputs_dir=_directory("inputs_dir", inputs_dir, violations),
        scratch_paths=_paths("scratch_paths", scratch_paths, violations),
        constraints=_constraints(constraints, violations),
        scratch=Roots(scratch_paths),
        size=_size_of(parts),
    )
    violations.raise_if_any()
    return sandbox


def _directory(field: str, path: str, violations: Violations) -> str:
    """A directory MUST be a clean relative path; empty is the sandbox's root."""
    if path:
        _check_path(field, path, violations)
    return path


def _constraints(occurrences: tuple[bytes, ...], violations: Violations) -> Constraints:
    """Constraints, where set, MUST have a system; paths MUST be clean, absolute and sorted."""
    if not occurrences:
        return Constraints()
    constraints = BuildRequest.BuildConstraints()
    try:
        for occurrence in occurrences:  # usually one; protobuf merges them
            constraints.MergeFromString(occurrence)
    except DecodeError:
        raise UnreadableMessage(BuildRequest.DESCRIPTOR.full_name) from None
    if not constraints.system:
        violations.add("constraints.system", "must not be empty where constraints is set")
    paths = constraints.available_ro_paths[:]
    field = "constraints.available_ro_paths"
    for i, path in enumerate(paths):
        for problem in path_problems(path, absolute=True):
            violations.add(f"{field}[{i}]", problem)
    _check_sorted(field, paths, violations)
    return Constraints(tuple(paths), constraints.network_access, constraints.provide_bin_sh)


# --- outputs and files ----------------------------------------------------------------


def _outputs(paths: list[str], scratch: Roots, violations: Violations) -> list[Output]:
    """Outputs MUST be clean relative paths, and sorted.

    Stricter: none MUST be empty, and each MUST lie at or under a scratch path, since
    nothing else is writable.
    """
    nearest = scratch.nearest_above(paths)
    for i, (path, above) in enumerate(zip(paths, nearest)):
        if _check_path(f"outputs[{i}]", path, violations) and above is None:
            violations.add(
                f"outputs[{i}]", f"must lie at or under a scratch path, {quoted(path)} does not"
            )
    _check_sorted("outputs", paths, violations)
    return [Output(path, above or "") for path, above in zip(paths, nearest)]


def _additional_files(
    files: Sequence[BuildRequest.AdditionalFile], scratch: Roots, violations: Violations
) -> list[AdditionalFile]:
    """Their paths MUST be clean relative paths, and sorted. Stricter: none MUST be empty."""
    paths = [file.path for file in files]
    _paths("additional_files", paths, violations, within=".path")
    return [
        AdditionalFile(file.path, file.contents, above)
        for file, above in zip(files, scratch.nearest_above(paths))
    ]


def _sound_files(
    files: Sequence[BuildRequest.AdditionalFile], scratch: Roots
) -> list[AdditionalFile]:
    violations = Violations()
    additional_files = _additional_files(files, scratch, violations)
    violations.raise_if_any()
    return additional_files


# --- what the rules share -------------------------------------------------------------

_Paths = TypeVar("_Paths", bound=Sequence[str])


def _paths(field: str, paths: _Paths, violations: Violations, *, within: str = "") -> _Paths:
    """Paths MUST be clean relative paths, and sorted. Stricter: none MUST be empty."""
    if not all_clean(paths):
        for i, path in enumerate(paths):
            _check_path(f"{field}[{i}]{within}", path, violations)
    _check_sorted(field, paths, violations, by="by path" if within else "")
    return paths


def _check_path(field: str, path: str, violations: Violations) -> bool:
    problems = path_problems(path)
    for problem in problems:
        violations.add(field, problem)
    return not problems


def _check_sorted(field: str, keys: Sequence[str], violations: Violations, *, by: str = "") -> None:
    """Lists MUST be sorted by bytes; UTF-8 sorts as its code points do."""
    if len(keys) > 1 and list(keys) != sorted(keys):
        before, after = next(pair for pair in pairwise(keys) if pair[0] > pair[1])
        violations.add(
            field,
            f"must be sorted{by and ' ' + by}, bytewise: "
            f"{quoted(after)} must not come after {quoted(before)}",
        )


T = TypeVar("T")


class _OddElement(Exception, Generic[T]):
    """An element that a memo does not keep: it breaks rules, or its place must be noted.

    ``problems`` are ``(field within it, description)``; ``read`` is what was read of it,
    which takes its place where the order of the elements is checked.
    """

    def __init__(self, *problems: tuple[str, str], read: T | None = None) -> None:
        self.problems = problems
        self.read = read


def _elements(
    field: str, elements: list[bytes], known: Memo[bytes, T], violations: Violations
) -> tuple[list[T], list[int]]:
    """Read the elements of a repeated field, each by its bytes.

    Returns them, and the indices of those that are odd and break no rule.
    """
    read_one = known.over(elements)
    read: list[T] = []
    noted = []
    for i, element in enumerate(elements):
        if violations.full:
            break
        try:
            read.append(read_one(element))
        except _OddElement as odd:
            for field_within, description in odd.problems:
                violations.add(f"{field}[{i}]{field_within}", description)
            if not odd.problems:
                noted.append(i)
            if odd.read is not None:
                read.append(odd.read)
    return read, noted


def _size_of(parts: _SandboxParts) -> int:
    working_dir, inputs_dir, scratch_paths, constraints = parts
    of_paths = sum(map(len, scratch_paths)) + len(scratch_paths)
    return len(working_dir) + len(inputs_dir) + of_paths + sum(map(len, constraints))


_key_of = attrgetter("key")

_KNOWN = 16_384  # 8 to 15 MiB of each, twice; more than the inputs of a large closure
_known_inputs = Memo(_input_name, limit=_KNOWN, longest=512)
# above are the texts of whole phases, which no other build shares
_known_env_vars = Memo(_env_var, limit=_KNOWN, longest=8_192)
_known_sandboxes = Memo(
    _read_sandbox, limit=KNOWN_SANDBOXES, longest=LARGEST_SANDBOX, size=_size_of
)
