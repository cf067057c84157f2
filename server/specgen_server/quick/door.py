"""The one door of this package: bytes of a request in, bytes of its answer out, or None."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeAlias

from google.protobuf.message import DecodeError

from specgen.v1.specgen_pb2 import SpecJSON
from specgen_core import SpecOptions, oci
from specgen_core.diagnostics import TMP_VARIABLES
from specgen_core.elements import read_input, read_variable
from specgen_core.violations import Violations
from specgen_core.wire import delimited, field_head, view_of
from tvix.build.protos.build_pb2 import BuildRequest
from tvix.castore.protos.castore_pb2 import Node

from .frames import MOST_INPUTS, Frame, FrameKey, NotRoutineError, Plain, make_frame, mount_piece
from .pieces import Pieces

__all__ = ["Quick"]

_MOST_BYTES = 128 * 1024  # beyond, an argument may be too long

# Beyond, it would take long; others may wait for the answer.
_MOST_VARIABLES = 1000
_MOST_OUTPUTS = 100
_MOST_OCCURRENCES = 4  # of constraints, which are joined

_LONGEST_DIRECTORY = 4095  # bytes: nothing is mounted in longer ones

_MiB = 1 << 20
_OF_INPUTS = 8 * _MiB  # for each inputs_dir
_DIRECTORIES = 2  # one more than most servers see
_OF_VARIABLES = 8 * _MiB
_OF_FRAMES = 4 * _MiB

_View = view_of(BuildRequest, opaque=("inputs", "environment_vars"), merged=("constraints",))

_Known: TypeAlias = tuple[str, bytes]
"""A name or key, to sort by, and what stands for it in the JSON."""

_KnownVariable: TypeAlias = tuple[str, bytes, bytes]
"""And the variable on the wire, where a diagnostic may look at it."""


class Quick:
    """``quick(wire, options)``: the answer to a routine request; None for any other.

    It is a SpecJSON in its wire form, the very bytes that ``plain`` makes. Threads may share it.
    """

    def __init__(self, plain: Plain) -> None:
        """Take pieces from this plain way."""
        self._variables = Pieces(_variable, most=_OF_VARIABLES, size=_size)
        self._inputs: Pieces[str, Pieces[bytes, _Known]] = Pieces(
            _inputs_into,
            most=_DIRECTORIES * (_OF_INPUTS + 1024),
            size=lambda _key, _value: _OF_INPUTS,
        )
        self._frames: Pieces[tuple[Any, ...], Frame | None] = Pieces(
            lambda key: _frame(FrameKey(*key), plain),
            most=_OF_FRAMES,
            size=lambda key, frame: FrameKey(*key).size + (frame.size if frame else 0),
        )

    @property
    def held(self) -> int:
        """How many bytes are remembered, about."""
        of_inputs = sum(pieces.held for pieces in self._inputs.values())
        return of_inputs + self._variables.held + self._frames.held

    def forget(self) -> None:
        """Know nothing, as at first: to test and to measure."""
        for pieces in (self._variables, self._inputs, self._frames):
            pieces.forget()

    def __call__(
        self,
        wire: bytes,
        options: SpecOptions,
        *,
        note_build: Callable[[int], None] | None = None,
    ) -> bytes | None:
        """Answer a BuildRequest in its wire form, and note how many inputs it has."""
        if len(wire) > _MOST_BYTES:
            return None
        try:
            view = _View.FromString(wire)
            inputs_dir = view.inputs_dir
            elements = view.inputs[:]
            if len(elements) > MOST_INPUTS or len(inputs_dir) > _LONGEST_DIRECTORY:
                return None
            # what is known, map and __getitem__ look up in C
            inputs = dict(map(self._inputs[inputs_dir].__getitem__, elements))
            of_variables = view.environment_vars[:]
            if len(of_variables) > _MOST_VARIABLES:
                return None
            variables = [*map(self._variables.__getitem__, of_variables)]
        except (DecodeError, NotRoutineError):
            return None
        names = [*inputs]
        keys, entries, watched = zip(*variables) if variables else ((), (), ())
        args = view.command_args[:]
        outputs = view.outputs[:]
        constraints = view.constraints[:]
        if (
            names != sorted(names)
            or [*keys] != sorted(keys)
            or len(names) != len(elements)
            or len(set(keys)) != len(keys)
            or not args
            or "\0" in "".join(args)
            or not args[0].startswith("/")
            or view.additional_files
            or len(outputs) > _MOST_OUTPUTS
            or len(constraints) > _MOST_OCCURRENCES
        ):
            return None
        scratch_paths = tuple(view.scratch_paths[:])
        named = _inputs_of(args[:1], inputs_dir, names)
        of_outputs = _inputs_of([f"/{path}" for path in outputs], inputs_dir, names)
        if of_outputs:
            named = sorted({*named, *of_outputs})
        key = (
            view.working_dir,
            inputs_dir,
            scratch_paths,
            tuple(constraints),
            args[0],
            tuple(outputs) if of_outputs else (),
            tuple([elements[i] for i in named]),
            bool(names),
            b"".join(watched),
            options,
        )
        frame = self._frames[key]
        if frame is None or len(names) > frame.most_inputs:
            return None
        written = SpecJSON()
        for path in outputs:
            place = _bundle_path(path, frame) if _is_plain_path(path) else None
            if place is None or path in scratch_paths:
                return None
            written.output_paths.add(path=path, bundle_path=place)
        if note_build:
            note_build(len(names))
        json = b"".join(
            (
                frame.before_inputs,
                *inputs.values(),
                frame.before_args,
                oci.encode(args),
                frame.before_variables,
                b",".join(entries),
                frame.after_variables,
            )
        )
        return b"".join(
            (
                field_head(SpecJSON.JSON_FIELD_NUMBER, len(json)),
                json,
                frame.scratch_dirs,
                written.SerializeToString(),
                frame.diagnostics,
            )
        )


_is_plain_path = re.compile(
    r"(?=.{1,255}\Z)(?:[\w+=?-][\w+=?.-]*/)+[\w+=?-][\w+=?.-]*", re.A
).fullmatch


def _bundle_path(path: str, frame: Frame) -> str | None:
    """Return where in the bundle an output lies, if it is under a scratch path."""
    for above, bundle_path in frame.scratch:
        if path.startswith(above):
            return bundle_path + path[len(above) :]
    return None


def _inputs_of(paths: list[str], inputs_dir: str, names: Sequence[str]) -> list[int]:
    """Return which of the inputs, sorted by name, absolute paths lie in."""
    found = []
    above = f"/{inputs_dir}/"
    for path in paths:
        if path.startswith(above):
            name = path[len(above) :].partition("/")[0]
            i = bisect_left(names, name)
            if i < len(names) and names[i] == name:
                found.append(i)
    return found


# --- pieces, as the plain way makes them ----------------------------------------------


class _NoViolations(Violations):
    """What breaks a rule is for the plain way to report."""

    def add(self, field: str, description: str) -> NoReturn:  # noqa: ARG002
        raise NotRoutineError


_NO_VIOLATIONS = _NoViolations()


def _variable(element: bytes) -> _KnownVariable:
    read = read_variable(BuildRequest.EnvVar.FromString(element), 0, _NO_VIOLATIONS)
    assert read  # noqa: S101  # or it breaks a rule
    key = read.key
    json = oci.encode(f"{key}={read.value}")
    return key, json, delimited(_VARIABLES, element) if key in TMP_VARIABLES else b""


_VARIABLES = BuildRequest.ENVIRONMENT_VARS_FIELD_NUMBER


def _frame(key: FrameKey, plain: Plain) -> Frame | None:
    try:
        return make_frame(key, plain)
    except NotRoutineError:
        return None


def _inputs_into(inputs_dir: str) -> Pieces[bytes, _Known]:
    def make(element: bytes) -> _Known:
        read = read_input(Node.FromString(element), 0, _NO_VIOLATIONS)
        if not read or read[1] == "symlink":  # the plain way has a word on each
            raise NotRoutineError
        return read[0], mount_piece(inputs_dir, read[0])

    return Pieces(make, most=_OF_INPUTS, size=_size)


def _size(key: bytes, known: _Known | _KnownVariable) -> int:
    return len(key) + len(known[0]) + len(known[1])
