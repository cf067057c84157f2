"""Inputs and environment variables: elements of a build request, of which there may be thousands.

reading.py says where the rules are from, and asks for them in the order of the fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TypeAlias

from tvix.build.protos.build_pb2 import BuildRequest
from tvix.castore.protos.castore_pb2 import Node

from .request import EnvVar, InputKind
from .text import quoted
from .violations import NO_NUL, Violations

__all__ = [
    "UNPARSED_NODE",
    "UNPARSED_VARIABLE",
    "read_environment",
    "read_input",
    "read_inputs",
    "read_variable",
]

UNPARSED_NODE = Node()
UNPARSED_VARIABLE = BuildRequest.EnvVar()
"""They stand for elements that do not parse."""

_NAME_BYTES = 255
_TARGET_BYTES = 4095
_DIGEST_BYTES = 32
_SLASH, _NUL = b"/\0"  # numbers: to look for one in bytes takes a tenth of the time

_TOGETHER = 512  # elements; of more, protobuf's objects do not stay in a processor's cache


def read_inputs(nodes: Sequence[Node], broken: Violations) -> dict[str, InputKind]:
    """Inputs MUST be sorted by name, and a name MUST NOT occur twice."""
    names: list[str] = []
    inputs: dict[str, InputKind] = {}
    for first in range(0, len(nodes), _TOGETHER):
        some = nodes[first : first + _TOGETHER]
        some_names, kinds = _plain_inputs(some) or _each_input(some, first, broken)
        names += some_names
        inputs.update(zip(some_names, kinds))
    broken.check_sorted("inputs", names, by="by name")
    if len(inputs) != len(names):
        twice = next(name for name, after in pairwise(sorted(names)) if name == after)
        broken.add("inputs", f"must not have a name twice, have {quoted(twice)}")
    return inputs


_NamesAndKinds: TypeAlias = tuple[list[str], list[InputKind]]


def _each_input(nodes: Iterable[Node], first: int, broken: Violations) -> _NamesAndKinds:
    each = (read_input(node, i, broken) for i, node in enumerate(nodes, first))
    read = [one for one in each if one]
    return [name for name, _ in read], [kind for _, kind in read]


def read_input(node: Node, i: int, broken: Violations) -> tuple[str, InputKind] | None:
    """An input MUST be set, and its digest one of BLAKE3.

    Returns its name, and what it is; ``broken`` gets the rules that it breaks, as of number ``i``.
    """
    kind = node.WhichOneof("node")
    if kind is None:
        broken.add(f"inputs[{i}]", _why_unset(node))
        return None
    of = getattr(node, kind)
    name = _decoded(of.name)
    for problem in _name_problems(of.name, name):
        broken.add(f"inputs[{i}].{kind}.name", problem)
    if kind == "symlink":
        for problem in _target_problems(of.target):
            broken.add(f"inputs[{i}].{kind}.target", problem)
    elif len(of.digest) != _DIGEST_BYTES:
        broken.add(
            f"inputs[{i}].{kind}.digest",
            f"must be a BLAKE3 digest, {_DIGEST_BYTES} bytes long, is {len(of.digest)}",
        )
    return None if name is None else (name, kind)


def _why_unset(node: Node) -> str:
    if node is UNPARSED_NODE:
        return "does not parse as a tvix.castore.v1.Node"
    return "has no node: set directory, file or symlink"


def _name_problems(name: bytes, decoded: str | None) -> list[str]:
    """A name MUST be one that a directory can hold. Stricter: it MUST be UTF-8, tvix panics."""
    problems = []
    if not 0 < len(name) <= _NAME_BYTES:
        problems.append(f"must be 1 to {_NAME_BYTES} bytes long, is {len(name)}")
    if name in (b".", b".."):
        problems.append('must not be "." or ".."')
    if _SLASH in name:
        problems.append("must not contain a slash")
    if _NUL in name:
        problems.append(NO_NUL)
    if decoded is None:
        problems.append("must be UTF-8")
    return problems


def _target_problems(target: bytes) -> list[str]:
    """What a symlink points to MUST be 1 to 4095 bytes long, and MUST NOT contain NUL."""
    problems = []
    if not 0 < len(target) <= _TARGET_BYTES:
        problems.append(f"must be 1 to {_TARGET_BYTES} bytes long, is {len(target)}")
    if _NUL in target:
        problems.append(NO_NUL)
    return problems


_PLAIN_KINDS = frozenset(("directory", "file"))
_PLAIN_SIZES = frozenset(range(len(b"..") + 1, _NAME_BYTES + 1))
_DIGEST_SIZES = frozenset((_DIGEST_BYTES,))


def _plain_inputs(nodes: Sequence[Node]) -> _NamesAndKinds | None:
    """Read nodes that plainly break no rule, all together; None where each is to be looked at.

    There may be thousands: this takes half of the time that looking at each does.
    """
    kind_of = Node.WhichOneof
    kinds = [kind_of(node, "node") for node in nodes]
    if not _PLAIN_KINDS.issuperset(kinds):
        return None
    named = [*map(getattr, nodes, kinds)]
    encoded = [one.name for one in named]
    if not _PLAIN_SIZES.issuperset(map(len, encoded)):
        return None
    joined = _decoded(b"/".join(encoded))
    if joined is None or "\0" in joined:
        return None
    names = joined.split("/")
    digests = [one.digest for one in named]
    if len(names) != len(encoded) or not _DIGEST_SIZES.issuperset(map(len, digests)):
        return None
    return names, kinds


# --- environment variables ------------------------------------------------------------


def read_environment(variables: Sequence[BuildRequest.EnvVar], broken: Violations) -> list[EnvVar]:
    """Variables MUST be sorted by key; equal keys may follow each other."""
    each = (read_variable(variable, i, broken) for i, variable in enumerate(variables))
    read = [variable for variable in each if variable]
    broken.check_sorted("environment_vars", [variable.key for variable in read], by="by key")
    return read


def read_variable(variable: BuildRequest.EnvVar, i: int, broken: Violations) -> EnvVar | None:
    """Stricter: a value MUST NOT contain NUL, and MUST be UTF-8; tvix panics.

    ``broken`` gets the rules that it breaks, as of number ``i``.
    """
    if variable is UNPARSED_VARIABLE:
        why = "does not parse as an EnvVar, or its key is not UTF-8"
        broken.add(f"environment_vars[{i}]", why)
        return None
    key, encoded = variable.key, variable.value
    for problem in _key_problems(key):
        broken.add(f"environment_vars[{i}].key", problem)
    if _NUL in encoded:
        broken.add(f"environment_vars[{i}].value", NO_NUL)
    try:
        value = encoded.decode()
    except UnicodeDecodeError as error:
        value, at = "", f"must be UTF-8, is not at byte {error.start}"
        broken.add(f"environment_vars[{i}].value", at)
    return EnvVar(key, value)


def _key_problems(key: str) -> list[str]:
    """A key MUST NOT be empty, and MUST NOT contain ``=``. Stricter: nor NUL."""
    problems = []
    if not key:
        problems.append("must not be empty")
    if "=" in key:
        problems.append(f'must not contain "=", is {quoted(key)}')
    if "\0" in key:
        problems.append(NO_NUL)
    return problems


def _decoded(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None
