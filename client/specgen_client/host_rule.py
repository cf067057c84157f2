"""What a check of the builder's host is made of: one entry, with all that is known of it.

It has the form of a diagnostic's (specgen_core/diagnostics/rule.py), but reads the host.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from specgen_core import Request, oci

from .owners import has_user_namespace

__all__ = ["MOST_NAMED", "HostBuild", "HostFindings", "HostRule", "HostRules", "listed"]

MOST_NAMED = 5
"""So many of what a check finds are named in its sentence."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HostBuild:
    """A build that is to run on this host."""

    request: Request
    """What the spec is of."""
    spec: oci.Spec
    """Its config.json."""
    bundle: Path
    """Where the bundle will lie."""
    inputs: Path | None
    """The directory that becomes the bundle's inputs/; None if that stays empty."""
    copied: bool
    """By being copied, and not by a link."""
    said: Collection[str] = ()
    """Codes of the diagnostics that the spec came with."""
    min_memory: int = 0
    """Bytes that the request wants the host to have."""

    @cached_property
    def rootless(self) -> bool:
        """Whether the sandbox's ids are others on the host."""
        return has_user_namespace(self.spec)

    @cached_property
    def binds(self) -> list[oci.Mount]:
        """What is mounted of the host itself."""
        return [m for m in self.spec.mounts if m.type == "none" and Path(m.source).is_absolute()]


HostFindings: TypeAlias = Iterator[dict[str, Any]]
"""Where a check finds something: the words that its sentence wants."""


class HostRule(NamedTuple):
    """An entry of the builder's table in docs/diagnostics.md."""

    code: str
    """Stable, in kebab-case."""
    sentence: str
    """What is said, with the words of a finding in braces."""
    find: Callable[[HostBuild], HostFindings]
    """Its docstring says when the check finds something."""
    proven_by: tuple[str, ...]
    """Tests that show it: of real runtimes, where it can be had there."""


class HostRules(list[HostRule]):
    """The checks of a module, in their order there."""

    def add(
        self, code: str, *sentence: str, proven_by: tuple[str, ...]
    ) -> Callable[[Callable[[HostBuild], HostFindings]], Callable[[HostBuild], HostFindings]]:
        """Add the function below, with its code and its sentence."""

        def add(
            find: Callable[[HostBuild], HostFindings],
        ) -> Callable[[HostBuild], HostFindings]:
            self.append(HostRule(code, " ".join(sentence), find, proven_by))
            return find

        return add


def listed(names: Sequence[str]) -> str:
    """Return the first of these names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
