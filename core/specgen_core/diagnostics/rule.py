"""What a diagnostic is made of: a rule is one entry, and all that is known of it stands there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import msgspec

from .. import oci
from ..layout import Layout
from ..options import SpecOptions
from ..paths import PathTree
from ..request import Request
from ..skeleton import Conflict, Skeleton

__all__ = ["Build", "Diagnostic", "Findings", "Rule", "Rules"]


class Diagnostic(msgspec.Struct, frozen=True):
    """Why a valid spec will not run as it stands, or not as its caller thinks."""

    code: str
    """Stable, in kebab-case."""
    field: str
    """The request's field or the option that it is about."""
    message: str
    """What will happen on which runtime, and what to do."""


class Build:
    """A request with its options and its spec, and what lies where in its sandbox."""

    def __init__(self, request: Request, options: SpecOptions, spec: oci.Spec) -> None:
        self.request, self.options, self.spec = request, options, spec
        self.layout = Layout(request, spec.mounts)

    @cached_property
    def conflicts(self) -> list[Conflict]:
        """Where its bundle would need a directory for one, and a file for another.

        Inputs lie beside each other, so those that nothing else lies in can have no conflict but
        one of inputs_dir, and the first input stands for that.
        """
        layout, files = self.layout, self.request.additional_files
        before, of_host = range(layout.inputs.start), (*layout.ro_paths, *layout.host_files)
        made = [*map(layout.place, before), self.working_dir]
        mounted = [*map(layout.place, of_host)]
        places = chain(made, mounted, (f"/{file.path}" for file in files))
        lain_in = {n for place in places for n in layout.over(place, layout.inputs)}
        first = layout.inputs[:1]
        may_be_files = [*mounted, *map(layout.place, first)]
        if not (files or lain_in or _any_lies_in(made, may_be_files)):
            return []  # as of most builds
        numbers = sorted({*before, *first, *lain_in, *of_host})
        return Skeleton(self.request, layout, numbers).conflicts

    @cached_property
    def working_dir(self) -> str:
        """Where the command starts, as an absolute path."""
        return f"/{self.request.working_dir}"

    def may_use_tmp(self, bits: int) -> bool:
        """Whether the build's user, one of the others, has these bits of the mode of /tmp."""
        passes_by = self.options.rootless and not self.options.drop_capabilities
        return passes_by or int(self.options.tmp_mode, 8) & bits == bits


def _any_lies_in(directories: Iterable[str], files: Iterable[str]) -> bool:
    """Whether any of the paths lies at or in one of the files, or a file in another."""
    tree = PathTree(files)
    return tree.is_nested or any(map(tree.at_or_above, directories))


Findings: TypeAlias = Iterator[tuple[str, dict[str, Any]]]
"""Where a rule holds: the field, and the words that its sentence wants."""


class Rule(NamedTuple):
    """An entry of docs/diagnostics.md's table."""

    code: str
    sentence: str
    """The message, with the words of a finding in braces."""
    find: Callable[[Build], Findings]
    """Its docstring says when the rule holds."""
    proven_by: tuple[str, ...]
    """The tests of tests/test_diagnostics_on_runtimes.py that show it on runc and crun."""


class Rules(list[Rule]):
    """The rules of a module, in their order there."""

    def add(
        self, code: str, *sentence: str, proven_by: tuple[str, ...]
    ) -> Callable[[Callable[[Build], Findings]], Callable[[Build], Findings]]:
        """Add the function below, with its code and its sentence."""

        def add(find: Callable[[Build], Findings]) -> Callable[[Build], Findings]:
            self.append(Rule(code, " ".join(sentence), find, proven_by))
            return find

        return add
