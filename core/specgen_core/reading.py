"""BuildRequest -> Request: every rule of a build request, in the order of its fields.

The only room that reads the message. All broken rules are reported together. Sources: tvix,
build/src/proto/mod.rs (``TryFrom<BuildRequest>``) and castore/src/proto/mod.rs, and the
comments of protos/tvix/build/protos/build.proto. Rules marked "stricter" are ours: there tvix
panics, or makes a spec that no runtime can start. Laxer than tvix: outputs and
available_ro_paths may come in any order, as today's snix coordinators send them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from operator import attrgetter, itemgetter
from typing import Any, AnyStr, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message

from tvix.build.protos.build_pb2 import BuildRequest
from tvix.castore.protos.castore_pb2 import Node

from .paths import nearest_above, path_problems
from .request import AdditionalFile, Constraints, EnvVar, InputKind, Output, Request
from .text import quoted
from .violations import UnreadableMessage, Violations
from .wire import view_of

__all__ = ["read_environment", "read_inputs", "read_request"]

_T = TypeVar("_T")
_M = TypeVar("_M", bound=Message)

_NAME_BYTES = 255
_TARGET_BYTES = 4095
_DIGEST_BYTES = 32


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
        [_parsed(element, _UNPARSED) for element in view.inputs],
        [_parsed(element, _UNPARSED_VARIABLE) for element in view.environment_vars],
    )


_UNPARSED = Node()
_UNPARSED_VARIABLE = BuildRequest.EnvVar()


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


# --- inputs ---------------------------------------------------------------------------
# There may be thousands: a rule is asked of many of them together, and of each where it is broken.

_TOGETHER = 512  # nodes; of more, protobuf's objects do not stay in a processor's cache


def read_inputs(nodes: Sequence[Node], broken: Violations) -> dict[str, InputKind]:
    """Inputs MUST be sorted by name, and a name MUST NOT occur twice.

    Returns what each of them is, by name; ``broken`` gets the rules that they break.
    """
    names: list[str] = []
    inputs: dict[str, InputKind] = {}
    for first in range(0, len(nodes), _TOGETHER):
        some, kinds = _read_nodes(first, nodes[first : first + _TOGETHER], broken)
        names += some
        inputs.update(zip(some, kinds))
    _check_sorted("inputs", names, broken, by="by name")
    if len(inputs) != len(names):
        twice = next(name for name, after in pairwise(sorted(names)) if name == after)
        broken.add("inputs", f"must not have a name twice, have {quoted(twice)}")
    return inputs


def _read_nodes(
    first: int, nodes: Sequence[Node], broken: Violations
) -> tuple[list[str], list[InputKind]]:
    """Return the names of the nodes from a first one on, and what each of them is."""
    kind_of = Node.WhichOneof
    of = [kind_of(node, "node") for node in nodes]
    at: Sequence[int] = range(len(of))
    problems: list[tuple[int, str, str]] = []  # an element, the field in it, and the rule
    if None in of:
        problems += ((i, "", _why_unset(nodes[i])) for i in at if of[i] is None)
        at = [i for i in at if of[i] is not None]
        nodes, of = [nodes[i] for i in at], [of[i] for i in at]
    named = [*map(getattr, nodes, of)]
    encoded = [*map(attrgetter("name"), named)]
    decoded = _decoded(encoded)
    links = _where(of, "symlink".__eq__) if "symlink" in of else []
    for field, found in (
        ("name", _name_problems(encoded, decoded)),
        ("digest", _digest_problems(named, links)),
        ("target", _target_problems(named, links)),
    ):
        problems += ((at[n], f".{of[n]}.{field}", problem) for n, problem in found)
    for i, field, problem in sorted(problems, key=itemgetter(0)):
        broken.add(f"inputs[{first + i}]{field}", problem)
    return [name for name in decoded if name is not None], of


def _why_unset(node: Node) -> str:
    """A node MUST parse, and MUST be set."""
    if node is _UNPARSED:
        return "does not parse as a tvix.castore.v1.Node"
    return "has no node: set directory, file or symlink"


_Problems: TypeAlias = Iterator[tuple[int, str]]
"""Which element of a list breaks a rule, and how."""


def _name_problems(names: list[bytes], decoded: Sequence[str | None]) -> _Problems:
    """A name MUST be one that a directory can hold. Stricter: it MUST be UTF-8."""
    lengths = [*map(len, names)]
    for i, length in _outside(lengths, 1, _NAME_BYTES):
        yield i, f"must be 1 to {_NAME_BYTES} bytes long, is {length}"
    if lengths and min(lengths) <= 2:
        for i in _where(names, (b".", b"..").__contains__):
            yield i, 'must not be "." or ".."'
    for i in _containing(names, b"/"):
        yield i, "must not contain a slash"
    for i in _containing(names, b"\0"):
        yield i, "must not contain a NUL byte"
    if None in decoded:
        for i in _where(decoded, lambda name: name is None):  # tvix panics
            yield i, "must be UTF-8"


def _digest_problems(named: list[Any], links: list[int]) -> _Problems:
    """A directory's or a file's digest MUST be one of BLAKE3."""
    at: Sequence[int] = range(len(named))
    if links:
        at = sorted({*at}.difference(links))
        named = [named[i] for i in at]
    lengths = [*map(len, map(attrgetter("digest"), named))]
    for n, length in _outside(lengths, _DIGEST_BYTES, _DIGEST_BYTES):
        yield at[n], f"must be a BLAKE3 digest, {_DIGEST_BYTES} bytes long, is {length}"


def _target_problems(named: list[Any], links: list[int]) -> _Problems:
    """What a symlink points to MUST be 1 to 4095 bytes long, and MUST NOT contain NUL."""
    targets = [named[i].target for i in links]
    for n, length in _outside([*map(len, targets)], 1, _TARGET_BYTES):
        yield links[n], f"must be 1 to {_TARGET_BYTES} bytes long, is {length}"
    for n in _containing(targets, b"\0"):
        yield links[n], "must not contain a NUL byte"


# --- the command, its directories and what it leaves behind ---------------------------


def _command_args(args: list[str], broken: Violations) -> list[str]:
    """Stricter: there MUST be a command, and an argument MUST NOT contain NUL, see execve(2)."""
    if not args:
        broken.add("command_args", "must name the command to run, is empty")
    for i in _containing(args, "\0"):
        broken.add(f"command_args[{i}]", "must not contain a NUL byte")
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
    _check_sorted("scratch_paths", paths, broken)
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


def read_environment(variables: Sequence[BuildRequest.EnvVar], broken: Violations) -> list[EnvVar]:
    """Variables MUST be sorted by key; equal keys may follow each other.

    ``broken`` gets the rules that they break.
    """
    read: list[EnvVar] = []
    for first in range(0, len(variables), _TOGETHER):
        read += _read_variables(first, variables[first : first + _TOGETHER], broken)
    _check_sorted("environment_vars", [each.key for each in read], broken, by="by key")
    return read


def _read_variables(
    first: int, variables: Sequence[BuildRequest.EnvVar], broken: Violations
) -> Iterable[EnvVar]:
    """Return the variables from a first one on, but for those that do not parse."""
    at = [i for i, variable in enumerate(variables) if variable is not _UNPARSED_VARIABLE]
    keys = [variables[i].key for i in at]
    encoded = [variables[i].value for i in at]
    values = _decoded(encoded)
    problems = [(at[n], ".key", why) for n, why in _key_problems(keys)]
    problems += ((at[n], ".value", why) for n, why in _value_problems(encoded, values))
    if len(at) != len(variables):
        why = "does not parse as an EnvVar, or its key is not UTF-8"
        problems += ((i, "", why) for i in {*range(len(variables))}.difference(at))
    for i, field, problem in sorted(problems, key=itemgetter(0)):
        broken.add(f"environment_vars[{first + i}]{field}", problem)
    return map(EnvVar, keys, [value or "" for value in values])


def _key_problems(keys: list[str]) -> _Problems:
    """A key MUST NOT be empty, and MUST NOT contain ``=``. Stricter: nor NUL."""
    if "" in keys:
        for i in _where(keys, "".__eq__):
            yield i, "must not be empty"
    for i in _containing(keys, "="):
        yield i, f'must not contain "=", is {quoted(keys[i])}'
    for i in _containing(keys, "\0"):
        yield i, "must not contain a NUL byte"


def _value_problems(values: list[bytes], decoded: Sequence[str | None]) -> _Problems:
    """Stricter: a value MUST NOT contain NUL, and MUST be UTF-8; tvix panics."""
    for i in _containing(values, b"\0"):
        yield i, "must not contain a NUL byte"
    if None in decoded:
        for i in _where(decoded, lambda value: value is None):
            yield i, f"must be UTF-8, is not at byte {_valid_bytes(values[i])}"


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
    _check_sorted("additional_files", [file.path for file in read], broken, by="by path")
    return read


# --- what the rules share -------------------------------------------------------------


def _where(elements: Sequence[_T], bad: Callable[[_T], bool]) -> list[int]:
    return [i for i, element in enumerate(elements) if bad(element)]


def _containing(texts: Sequence[AnyStr], char: AnyStr) -> list[int]:
    if char not in char[:0].join(texts):
        return []
    return _where(texts, lambda text: char in text)


def _outside(lengths: list[int], least: int, most: int) -> Iterator[tuple[int, int]]:
    if lengths and not least <= min(lengths) <= max(lengths) <= most:
        for i, length in enumerate(lengths):
            if not least <= length <= most:
                yield i, length


def _decoded(texts: Sequence[bytes]) -> Sequence[str | None]:
    try:
        return [*map(bytes.decode, texts)]
    except UnicodeDecodeError:
        return [text.decode() if _valid_bytes(text) == len(text) else None for text in texts]


def _valid_bytes(text: bytes) -> int:
    """Return how many bytes of a text are UTF-8, up to the first that is not."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(text)


def _check_path(field: str, path: str, broken: Violations, *, absolute: bool = False) -> bool:
    problems = path_problems(path, absolute=absolute)
    for problem in problems:
        broken.add(field, problem)
    return not problems


def _check_sorted(field: str, keys: list[str], broken: Violations, *, by: str = "") -> None:
    """Lists MUST be sorted by bytes; UTF-8 sorts as its code points do."""
    if keys != sorted(keys):
        before, after = next(pair for pair in pairwise(keys) if pair[0] > pair[1])
        broken.add(
            field,
            f"must be sorted{by and ' ' + by}, bytewise: "
            f"{quoted(after)} must not come after {quoted(before)}",
        )
