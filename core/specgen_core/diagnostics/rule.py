"""What a diagnostic is made of: a rule is one entry, and all that is known of it stands there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import msgspec

from .. import oci
from ..layout import Layout
from ..options import SpecOptions
from ..request import Request
from ..skeleton import Skeleton

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
    """A request with its options, and what lies where in its sandbox."""

    def __init__(self, request: Request, options: SpecOptions, mounts: Sequence[oci.Mount]) -> None:
        self.request, self.options = request, options
        self.layout = Layout(request, mounts)

    @cached_property
    def skeleton(self) -> Skeleton:
        """What its bundle must hold, for all mounts but inputs that nothing else lies in.

        Inputs lie beside each other, so those can have no conflict but one of inputs_dir, and
        the first input stands for that.
        """
        layout, request = self.layout, self.request
        after = range(layout.inputs.stop, len(layout.mounts))
        others = [*range(layout.inputs.start), *after]
        places = [layout.place(n) for n in others]
        places += [f"/{path}" for path in (request.working_dir, *_paths_of_files(request))]
        lain_in = {n for place in places for n in layout.over(place, layout.inputs)}
        return Skeleton(request, layout, sorted({*others, *layout.inputs[:1], *lain_in}))

    @cached_property
    def working_dir(self) -> str:
        """Where the command starts, as an absolute path."""
        return f"/{self.request.working_dir}"

    def may_use_tmp(self, bits: int) -> bool:
        """Whether the build's user, one of the others, has these bits of the mode of /tmp."""
        passes_by = self.options.rootless and not self.options.drop_capabilities
        return passes_by or int(self.options.tmp_mode, 8) & bits == bits


def _paths_of_files(request: Request) -> list[str]:
    return [file.path for file in request.additional_files]


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
