"""The frame of an answer: all that is the same for builds with one sandbox and one command."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import NamedTuple, TypeAlias

from specgen.v1.specgen_pb2 import SpecJSON
from specgen_core import SpecOptions, oci
from specgen_core.paths import lies_in, path_problems
from specgen_core.spec import input_mounts
from tvix.build.protos.build_pb2 import BuildRequest
from tvix.castore.protos.castore_pb2 import Node

__all__ = [
    "MOST_INPUTS",
    "Frame",
    "FrameKey",
    "NotRoutineError",
    "Plain",
    "make_frame",
    "mount_piece",
]

MOST_INPUTS = 900
"""With more of them, the mounts may be too many for the usual limit of open files."""

Plain: TypeAlias = Callable[[BuildRequest, SpecOptions], SpecJSON]
"""The plain way, with all that refuses a request."""


class NotRoutineError(Exception):
    """The plain way must look at it."""


_OBJECTS_OVER_JSON = 4  # in memory, id mappings take so many times what their JSON does


class FrameKey(NamedTuple):
    """What an answer's frame hangs on."""

    working_dir: str
    inputs_dir: str
    scratch_paths: tuple[str, ...]
    constraints: tuple[bytes, ...]
    """What occurs of them, unparsed; joined, they are the field's one value."""
    command: str
    outputs: tuple[str, ...]
    """All of them where one lies in an input; else no finding hangs on them."""
    named_inputs: tuple[bytes, ...]
    """Those that the command or an output lies in, unparsed."""
    has_inputs: bool
    watched: bytes
    """The variables that a diagnostic may look at, as a request has them on the wire."""
    options: SpecOptions

    @property
    def size(self) -> int:
        """How many bytes are in it, about."""
        lists = (self.scratch_paths, self.constraints, self.outputs, self.named_inputs)
        texts = (self.working_dir, self.inputs_dir, self.command, self.watched)
        options = len(oci.encode(self.options)) * _OBJECTS_OVER_JSON
        return sum(map(len, chain(texts, *lists))) + options


class Frame(NamedTuple):
    """The parts of an answer around inputs, arguments, variables and outputs."""

    before_inputs: bytes
    before_args: bytes
    before_variables: bytes
    after_variables: bytes
    scratch_dirs: bytes
    diagnostics: bytes
    most_inputs: int
    """With more of them, the mounts may be too many."""
    scratch: tuple[tuple[str, str], ...]
    """Each scratch path and where it lies in the bundle, with a slash, the deepest first."""

    @property
    def size(self) -> int:
        """How many bytes are in it, about."""
        paths = sum(len(one) + len(other) for one, other in self.scratch)
        return paths + sum(len(part) for part in self if isinstance(part, bytes))


# A mark stands where the pieces go. Where a request has one of its own, it is not routine.
_INPUT = Node(file={"name": b"mark-input", "digest": bytes(32)})
_ARG = "mark-argument"
_VARIABLE = BuildRequest.EnvVar(key="mark", value=b"variable")


def mount_piece(inputs_dir: str, name: str) -> bytes:
    """Return the mount of an input as it stands in the JSON: others come before it."""
    (mount,) = input_mounts(inputs_dir, (name,))
    return b"," + oci.encode(mount)


def make_frame(key: FrameKey, plain: Plain) -> Frame:
    """Ask the plain way about a request with marks in it, and cut its answer there.

    Raises:
        NotRoutineError: the answer hangs on which inputs or outputs there are, or the plain way
            refuses this.
    """
    mark = f"/{key.inputs_dir}/{_INPUT.file.name.decode()}"
    if path_problems(key.command, absolute=True):
        raise NotRoutineError  # it leads where it does not seem to
    if any(lies_in(path, mark) for path in (key.command, *(f"/{path}" for path in key.outputs))):
        raise NotRoutineError  # it leads into what is no input of the request
    marked = BuildRequest(
        command_args=[key.command, _ARG],
        working_dir=key.working_dir,
        inputs_dir=key.inputs_dir,
        scratch_paths=key.scratch_paths,
        outputs=key.outputs,
    )
    variables = [*BuildRequest.FromString(key.watched).environment_vars, _VARIABLE]
    marked.environment_vars.extend(sorted(variables, key=lambda variable: variable.key))
    inputs = [*map(Node.FromString, key.named_inputs)]
    if key.has_inputs:
        inputs.append(_INPUT)
    marked.inputs.extend(sorted(inputs, key=_name))
    try:
        for occurrence in key.constraints:
            marked.constraints.MergeFromString(occurrence)
        if len((*key.scratch_paths, *marked.constraints.available_ro_paths)) > _MOST_PATHS:
            raise NotRoutineError
        answer = plain(marked, key.options)
    except Exception:
        raise NotRoutineError from None
    json = answer.json.encode()
    places = [mount.destination for mount in oci.decode(json).mounts]
    named = [found.field for found in answer.diagnostics]
    if (
        answer.root_entries
        or any(field.startswith(("inputs[", "environment_vars[")) for field in named)
        or not _is_apart(key, places, len(inputs))
    ):
        raise NotRoutineError
    mounts = b"".join(mount_piece(key.inputs_dir, _name(i).decode()) for i in marked.inputs)
    entries = [oci.encode(f"{v.key}={v.value.decode()}") for v in marked.environment_vars]
    try:
        before_inputs, rest = json.split(mounts) if mounts else (b"", json)
        before_args, rest = rest.split(oci.encode([key.command, _ARG]))
        before_variables, after_variables = rest.split(b",".join(entries))
    except ValueError:
        raise NotRoutineError from None
    limit = key.options.nofile.soft or 2 * MOST_INPUTS
    return Frame(
        before_inputs,
        before_args,
        before_variables,
        after_variables,
        SpecJSON(scratch_dirs=answer.scratch_dirs).SerializeToString(),
        SpecJSON(diagnostics=answer.diagnostics).SerializeToString(),
        min(MOST_INPUTS, limit - _ROOM - len(places)),
        tuple(
            (f"{found.path}/", f"{found.bundle_path}/")
            for found in sorted(answer.scratch_dirs, key=lambda found: -len(found.path))
        ),
    )


_MOST_PATHS = 100  # of a routine request: each may lie in each
_ROOM = 64  # for the files that a runtime itself has open


def _name(node: Node) -> bytes:
    name: bytes = getattr(node, node.WhichOneof("node") or "file").name
    return name


def _is_apart(key: FrameKey, places: list[str], inputs: int) -> bool:
    """Whether nothing of the sandbox lies in an input, nor over or under a scratch path.

    Then no finding hangs on which inputs and outputs there are. ``places`` are those of the
    mounts: the runtime's, scratch paths, so many inputs, and what is mounted later.
    """
    scratch = [f"/{path}" for path in key.scratch_paths]
    late = places[len(oci.DEFAULT_MOUNTS) + 1 + len(scratch) + inputs :]
    inputs_dir = f"/{key.inputs_dir}"
    in_inputs = any(
        lies_in(place, inputs_dir) and place != inputs_dir
        for place in (f"/{key.working_dir}", *scratch, *late)
    )
    in_scratch = any(
        lies_in(one, other) or lies_in(other, one) for one in late for other in scratch
    )
    return bool(key.inputs_dir) and not in_inputs and not in_scratch
