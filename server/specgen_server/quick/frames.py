"""The frame of an answer: all that is the same for builds with one sandbox and one command."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

from specgen.v1.specgen_pb2 import SpecJSON
from specgen_core import Layout, Request, SpecOptions, oci, read_request
from specgen_core.paths import lies_in
from specgen_core.spec import configure_mounts, input_mounts
from tvix.build.protos.build_pb2 import BuildRequest
from tvix.castore.protos.castore_pb2 import Node

__all__ = ["Frame", "FrameKey", "NotRoutineError", "Plain", "make_frame", "mount_pieces"]

Plain: TypeAlias = Callable[[BuildRequest, SpecOptions], SpecJSON]
"""The plain way, with all that refuses a request."""


class NotRoutineError(Exception):
    """The plain way must look at it."""


class FrameKey(NamedTuple):
    """What an answer's frame hangs on."""

    working_dir: str
    inputs_dir: str
    scratch_paths: tuple[str, ...]
    constraints: tuple[bytes, ...]
    """What occurs of them, unparsed; joined, they are the field's one value."""
    command: str
    command_input: bytes
    """The input that the command lies in, unparsed; empty where it lies in none."""
    has_inputs: bool
    watched: bytes
    """The variables that a diagnostic may look at, as a request has them on the wire."""
    options: SpecOptions


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


def mount_pieces(inputs_dir: str, names: Iterable[str]) -> list[bytes]:
    """Return the mounts of inputs as they stand in the JSON: others come before them."""
    return [b"," + oci.encode(mount) for mount in input_mounts(inputs_dir, names)]


def make_frame(key: FrameKey, plain: Plain) -> Frame:
    """Ask the plain way about a request with marks in it, and cut its answer there.

    Raises:
        NotRoutineError: the answer hangs on which inputs or outputs there are, or the plain way
            refuses this.
    """
    marked = BuildRequest(
        command_args=[key.command, _ARG],
        working_dir=key.working_dir,
        inputs_dir=key.inputs_dir,
        scratch_paths=key.scratch_paths,
    )
    variables = [*BuildRequest.FromString(key.watched).environment_vars, _VARIABLE]
    marked.environment_vars.extend(sorted(variables, key=lambda variable: variable.key))
    inputs = [Node.FromString(key.command_input)] if key.command_input else []
    if key.has_inputs:
        inputs.append(_INPUT)
    marked.inputs.extend(sorted(inputs, key=_name))
    try:
        for occurrence in key.constraints:
            marked.constraints.MergeFromString(occurrence)
        answer = plain(marked, key.options)
    except Exception:
        raise NotRoutineError from None
    read = read_request(marked)
    named = [found.field for found in answer.diagnostics]
    if (
        answer.root_entries
        or any(field.startswith(("inputs[", "environment_vars[")) for field in named)
        or not _is_apart(read, key.options)
    ):
        raise NotRoutineError
    mounts = b"".join(mount_pieces(key.inputs_dir, read.inputs))
    try:
        json = answer.json.encode()
        before_inputs, rest = json.split(mounts) if mounts else (b"", json)
        before_args, rest = rest.split(oci.encode(read.command_args))
        entries = [oci.encode(f"{v.key}={v.value}") for v in read.environment]
        before_variables, after_variables = rest.split(b",".join(entries))
    except ValueError:
        raise NotRoutineError from None
    return Frame(
        before_inputs,
        before_args,
        before_variables,
        after_variables,
        SpecJSON(scratch_dirs=answer.scratch_dirs).SerializeToString(),
        SpecJSON(diagnostics=answer.diagnostics).SerializeToString(),
        _most_inputs(read, key.options),
        tuple(
            (f"{found.path}/", f"{found.bundle_path}/")
            for found in sorted(answer.scratch_dirs, key=lambda found: -len(found.path))
        ),
    )


_MOST_INPUTS = 900
_ROOM = 64


def _most_inputs(request: Request, options: SpecOptions) -> int:
    """Return so few that the mounts are not too many, whatever it is that counts them."""
    limit = options.nofile.soft or 2 * _MOST_INPUTS
    return min(_MOST_INPUTS, limit - _ROOM - len(configure_mounts(request, options)))


def _name(node: Node) -> bytes:
    name: bytes = getattr(node, node.WhichOneof("node") or "file").name
    return name


def _is_apart(request: Request, options: SpecOptions) -> bool:
    """Whether nothing of the sandbox lies in an input, nor over or under a scratch path.

    Then no finding hangs on which inputs and outputs there are.
    """
    layout = Layout(request, configure_mounts(request, options))
    inputs_dir = f"/{request.inputs_dir}"
    scratch = [layout.place(n) for n in layout.scratch]
    late = [layout.place(n) for n in (*layout.ro_paths, *layout.host_files)]
    in_inputs = any(
        lies_in(place, inputs_dir) and place != inputs_dir
        for place in (f"/{request.working_dir}", *scratch, *late)
    )
    in_scratch = any(
        lies_in(one, other) or lies_in(other, one) for one in late for other in scratch
    )
    return bool(request.inputs_dir) and not in_inputs and not in_scratch
