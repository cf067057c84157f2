"""What is valid and will still not run, or not as its caller thinks.

One entry for each code (rule.py): the sentence, where it holds, and the test that proves it
on real runtimes, runc 1.1.5 and crun 1.8.1. docs/diagnostics.md has the table that comes of
them. What hangs on the builder's host alone is not said here.
"""

from __future__ import annotations

from itertools import islice

from .. import oci
from ..options import SpecOptions
from ..request import Request
from ..spec import make_spec
from . import command_rules, file_rules, host_rules, mount_rules, option_rules
from .command_rules import TMP_VARIABLES
from .rule import Build, Diagnostic, Rule

__all__ = ["CODES", "RULES", "TMP_VARIABLES", "Diagnostic", "diagnose"]

RULES: tuple[Rule, ...] = (
    *option_rules.RULES,
    *host_rules.RULES,
    *command_rules.RULES,
    *mount_rules.RULES,
    *file_rules.RULES,
)
"""All of them, in the order in which their findings are listed."""

CODES = tuple(rule.code for rule in RULES)
"""Every code there is."""

_MOST_OF_A_CODE = 20


def diagnose(
    request: Request, options: SpecOptions, spec: oci.Spec | None = None
) -> list[Diagnostic]:
    """Return what will keep the spec from running, at most 20 findings of a code.

    ``spec`` is the one that they make; without it, it is made anew.
    """
    build = Build(request, options, spec or make_spec(request, options))
    return [
        Diagnostic(rule.code, field, rule.sentence.format_map(words))
        for rule in RULES
        for field, words in islice(rule.find(build), _MOST_OF_A_CODE)
    ]
