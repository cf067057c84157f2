"""The command-line flags that make SpecOptions, for specgen-server and specgen alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from specgen_core import IdMapping, InvalidRequest, SpecOptions

from .host_ids import NoSubordinateIds, host_id_mappings

__all__ = ["DEFAULTS_WITH_SERVER", "spec_flags", "spec_flags_with", "spec_options"]

F = TypeVar("F", bound=Callable[..., Any])

_ID = re.compile(r"[0-9]{1,10}")


class _IdMappingType(click.ParamType[IdMapping]):
    name = "C:H:S"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> IdMapping:
        if isinstance(value, IdMapping):
            return value
        numbers = value.split(":")
        if len(numbers) != 3 or not all(map(_ID.fullmatch, numbers)):
            self.fail(
                f"{value!r} is not CONTAINER_ID:HOST_ID:SIZE in numbers, such as 0:100000:65536",
                param,
                ctx,
            )
        return IdMapping(*map(int, numbers))


_DEFAULTS = {
    "rootless": "rootless",
    "sandbox-shell": "/bin/sh",
    "terminal": "terminal",
    "cgroup-namespace": "cgroup-namespace",
    "id-mappings": "none",
}
DEFAULTS_WITH_SERVER = {
    name: f"{default}; with --server, the server's own" for name, default in _DEFAULTS.items()
}
"""What a command's help says that asks a server, or makes the spec itself."""


def spec_flags(command: F) -> F:
    """Add the flags to a click command; ``spec_options`` makes SpecOptions of them."""
    return spec_flags_with({})(command)


def spec_flags_with(defaults: Mapping[str, str]) -> Callable[[F], F]:
    """Return what adds the flags to a command whose own defaults are others, in its help."""

    def add(command: F) -> F:
        for flag in reversed(_flags({**_DEFAULTS, **defaults})):
            command = flag(command)
        return command

    return add


def _flags(default: Mapping[str, str]) -> tuple[Callable[[F], F], ...]:
    return (
        click.option(
            "--rootless/--rootful",
            default=None,
            help="Whether the runtime lacks root on its host: the spec then makes a user"
            f" namespace.  [default: {default['rootless']}]",
        ),
        click.option(
            "--sandbox-shell",
            metavar="PATH",
            help="What is mounted at /bin/sh for builds that ask for it: a static shell, on the"
            f" builder.  [default: {default['sandbox-shell']}]",
        ),
        click.option(
            "--terminal/--no-terminal",
            default=None,
            help=f"Whether the build gets a terminal.  [default: {default['terminal']}]",
        ),
        click.option(
            "--cgroup-namespace/--no-cgroup-namespace",
            default=None,
            help="Whether the build gets a cgroup namespace.  [default:"
            f" {default['cgroup-namespace']}]",
        ),
        click.option(
            "--uid-mapping",
            type=_IdMappingType(),
            multiple=True,
            help="S user ids from C on, in the sandbox, are the host's from H on. Repeatable.",
        ),
        click.option(
            "--gid-mapping",
            type=_IdMappingType(),
            multiple=True,
            help="The same for group ids. Repeatable.",
        ),
        click.option(
            "--id-mappings",
            type=click.Choice(["auto", "none"]),
            help="auto: map ids by this host's /etc/subuid and /etc/subgid, for the user that runs"
            " this: its first subordinate id is the build's user, and root of the sandbox is the"
            " user itself; for root, who needs no entry there, it is the next id. Right where the"
            f" builds run on this host.  [default: {default['id-mappings']}]",
        ),
    )


def spec_options(
    *,
    rootless: bool | None,
    sandbox_shell: str | None,
    terminal: bool | None,
    cgroup_namespace: bool | None,
    uid_mapping: tuple[IdMapping, ...],
    gid_mapping: tuple[IdMapping, ...],
    id_mappings: str | None,
) -> SpecOptions:
    """Return the options that the flags say, the seed's defaults for those not given.

    Raises:
        click.UsageError: they cannot be, or the host has no ids to map.
    """
    if id_mappings == "auto":
        if uid_mapping or gid_mapping:
            raise click.UsageError(
                "--id-mappings auto does not go with --uid-mapping or --gid-mapping"
            )
        if rootless is not False:
            try:
                uid_mapping, gid_mapping = host_id_mappings()
            except (NoSubordinateIds, OSError) as error:
                raise click.UsageError(f"--id-mappings auto: {error}") from None
    try:
        return SpecOptions().override(
            rootless=rootless,
            sandbox_shell=sandbox_shell,
            terminal=terminal,
            cgroup_namespace=cgroup_namespace,
            uid_mappings=uid_mapping,
            gid_mappings=gid_mapping,
        )
    except InvalidRequest as error:
        raise click.UsageError(str(error)) from None
