"""What lies where in a sandbox: its mounts, in the order of the spec.

A later mount covers an earlier one at or above its place. Diagnostics and skeleton ask this,
and nothing else, what a path leads into.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Literal, TypeAlias

from . import oci
from .paths import PathTree
from .request import InputKind, Request
from .text import printable

__all__ = ["Layout", "MountKind", "shown"]

MountKind: TypeAlias = Literal["runtime", "scratch", "ro_path", "host_file"] | InputKind
"""Who makes a mount: the runtime; a scratch path; an input, by what it is; a host path."""

_PATH_BYTES = 4095  # PATH_MAX, less the NUL byte at the end: nothing can be mounted beyond
_SHOWN_CHARS = 60


def shown(text: str) -> str:
    """Return a text that fits a sentence, and is safe to print on a terminal."""
    return printable(text, most=_SHOWN_CHARS)


class Layout:
    """The mounts of a request's spec, by number: what they are, and which lie over a path."""

    def __init__(self, request: Request, mounts: Sequence[oci.Mount]) -> None:
        """Take the mounts that ``configure_mounts`` returns, part after part."""
        self.mounts = mounts
        first = len(oci.DEFAULT_MOUNTS) + 1  # and /tmp
        self.scratch = range(first, first + len(request.scratch_paths))
        self.inputs = range(self.scratch.stop, self.scratch.stop + len(request.inputs))
        ro_paths = len(request.constraints.available_ro_paths)
        self.ro_paths = range(self.inputs.stop, self.inputs.stop + ro_paths)
        self.host_files = range(self.ro_paths.stop, len(mounts))
        self._input_kinds = [*request.inputs.values()]
        self._in_inputs = f"/{request.inputs_dir}/" if request.inputs_dir else "/"
        numbers = (*range(self.inputs.start), *range(self.inputs.stop, len(mounts)))
        others = (*mounts[: self.inputs.start], *mounts[self.inputs.stop :])
        places = [*map(_place_of, others)]
        self._last_at = dict(zip(places, numbers))
        self._tree = PathTree(self._last_at)
        self._same = _at_same(places, numbers) if len(self._last_at) < len(places) else {}

    def place(self, number: int) -> str:
        """Return where in the sandbox a mount lies."""
        return self.mounts[number].destination

    def over(self, path: str, *parts: range) -> list[int]:
        """Return the mounts of these parts that lie at or above a path, in their order.

        Without parts, it is all mounts.
        """
        if (parts and not any(parts)) or len(path) > _PATH_BYTES:
            return []
        if parts == (self.inputs,):
            return self._inputs_over(path)
        found = self._last_at_or_above(path)
        if self._same:
            found += [n for last in found for n in self._same.get(last, [])[:-1]]
        if parts:
            found = [n for n in found if any(n in part for part in parts)]
        return sorted(found)

    def seen_at(self, path: str, *, before: int | None = None) -> int | None:
        """Return the mount that a path leads into: the last of those at or above it.

        With ``before``, as it is when so many have been mounted; None where none is.
        """
        if len(path) > _PATH_BYTES:
            return None
        found = self._last_at_or_above(path)
        if before is not None:
            same = (self._same.get(number, (number,)) for number in found)
            counts = ((numbers, bisect_left(numbers, before)) for numbers in same)
            found = [numbers[count - 1] for numbers, count in counts if count]
        return max(found, default=None)

    def _last_at_or_above(self, path: str) -> list[int]:
        """Return of each place at or above a path the last mount."""
        found = [self._last_at[place] for place in self._tree.at_or_above(path)]
        return found + self._inputs_over(path)

    def _inputs_over(self, path: str) -> list[int]:
        """Return the input at or above a path, if there is one: they are sorted by their names."""
        if not path.startswith(self._in_inputs):
            return []
        end = path.find("/", len(self._in_inputs))
        place = path if end < 0 else path[:end]
        stop = min(self.inputs.stop, len(self.mounts))
        number = bisect_left(self.mounts, place, self.inputs.start, stop, key=_place_of)
        return [number] if number < stop and self.place(number) == place else []

    def kind(self, number: int) -> MountKind:
        """Return what a mount is."""
        if number in self.inputs:
            return self._input_kinds[number - self.inputs.start]
        if number in self.scratch:
            return "scratch"
        if number in self.ro_paths:
            return "ro_path"
        return "host_file" if number in self.host_files else "runtime"

    def is_tmp(self, number: int) -> bool:
        """Whether a mount is the sandbox's own /tmp."""
        return self.kind(number) == "runtime" and self.place(number) == "/tmp"

    def field(self, number: int) -> str:
        """Return the field of the request that asks for a mount; empty for the runtime's."""
        if number in self.inputs:
            return f"inputs[{number - self.inputs.start}]"
        if number in self.scratch:
            return f"scratch_paths[{number - self.scratch.start}]"
        if number in self.ro_paths:
            return f"constraints.available_ro_paths[{number - self.ro_paths.start}]"
        if number not in self.host_files:
            return ""
        is_shell = self.place(number) == "/bin/sh"
        return "constraints.provide_bin_sh" if is_shell else "constraints.network_access"

    def what(self, number: int) -> str:
        """Return what a mount is, for a sentence."""
        place = shown(self.place(number))
        if number in self.inputs:
            return f"the input {place}"
        if number in self.scratch:
            return f"the scratch path {place}"
        if number in self.ro_paths:
            return f"the read-only path {place}"
        if number not in self.host_files:
            return f"the runtime's {place}"
        return "the sandbox shell" if place == "/bin/sh" else f"the host's {place}"


_place_of = attrgetter("destination")


def _at_same(places: Iterable[str], numbers: Iterable[int]) -> dict[int, list[int]]:
    """Return all mounts of each place, by the last of them."""
    at: dict[str, list[int]] = {}
    for place, number in zip(places, numbers):
        at.setdefault(place, []).append(number)
    return {numbers[-1]: numbers for numbers in at.values()}
