"""What this host lacks for a spec to run on it: what only its builder can know.

One entry for each code (host_rule.py). What can be known from the request alone is a diagnostic of
the spec instead.
"""

from __future__ import annotations

from collections.abc import Iterator

from . import (
    command_checks,
    machine_checks,
    mount_checks,
    namespace_checks,
    owner_checks,
    read_only_paths,
)
from .host_rule import HostBuild, HostRule

__all__ = ["HOST_RULES", "host_problems"]

HOST_RULES: tuple[HostRule, ...] = (
    *mount_checks.RULES,
    *read_only_paths.RULES,
    *owner_checks.RULES,
    *command_checks.RULES,
    *machine_checks.RULES,
    *namespace_checks.RULES,
)
"""All of them, in the order in which their findings are listed."""


def host_problems(build: HostBuild) -> Iterator[str]:
    """Yield sentences about what will keep a build from running here, each with its code."""
    for rule in HOST_RULES:
        for words in rule.find(build):
            yield f"{rule.sentence.format_map(words)} [{rule.code}]"
