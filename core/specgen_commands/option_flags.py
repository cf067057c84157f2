"""The command-line flags that make SpecOptions, for specgen-server and specgen alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, TypeVar, cast, get_args

import click

from specgen_core import IdMapping, InvalidRequest, Nofile, Resources, SpecOptions
from specgen_core.options import GivenOptions
from specgen_core.profiles import PROFILE_NAMES, DeviceRules, Personality, Seccomp

from .host_ids import NoSubordinateIds, host_id_mappings

__all__ = [
    "DEFAULTS_WITH_SERVER",
    "FiniteRange",
    "given_options",
    "spec_flags",
    "spec_flags_with",
    "spec_options",
]

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


class _NofileType(click.ParamType[Nofile]):
    name = "SOFT:HARD"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Nofile:
        if isinstance(value, Nofile):
            return value
        if value == "none":
            return Nofile(0, 0)
        numbers = value.split(":")
        if len(numbers) != 2 or not all(map(_ID.fullmatch, numbers)):
            self.fail(f"{value!r} is not SOFT:HARD such as 65536:1048576, or none", param, ctx)
        return Nofile(*map(int, numbers))


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,18})([KMGT]?)")


class _BytesType(click.ParamType[int]):
    name = "BYTES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = _SIZE.fullmatch(value)
        if not found:
            self.fail(f"{value!r} is not a number of bytes such as 512M", param, ctx)
        return int(found[1]) * _UNITS[found[2]]


class FiniteRange(click.FloatRange):
    """A number in a range; click takes nan for one in each."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number."""
        number: float = super().convert(value, param, ctx)
        if not isfinite(number):
            self.fail(f"{value} is no number.", param, ctx)
        return number


_DEFAULTS = {
    "rootless": "rootless",
    "sandbox-shell": "/bin/sh",
    "terminal": "terminal",
    "cgroup-namespace": "cgroup-namespace",
    "id-mappings": "none",
    "profile": "seed",
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
            help="Whether the build gets a user namespace (rootless), which a runtime needs that"
            f" does not run as root.  [default: {default['rootless']}]",
        ),
        click.option(
            "--sandbox-shell",
            metavar="PATH",
            help="A static shell on the builder, mounted at /bin/sh for builds that ask for it."
            f"  [default: {default['sandbox-shell']}]",
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
            help="Map S user ids, from C on in the sandbox, to those from H on of the host."
            " Repeatable.",
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
            help="auto: take the mappings from this host's /etc/subuid and /etc/subgid. The build"
            " runs as the first subordinate id of the user that runs this command. Root of the"
            " sandbox is that user or, for root, who needs no entry there, the next subordinate id."
            f" Right only where the builds run on this host.  [default: {default['id-mappings']}]",
        ),
        click.option(
            "--profile",
            type=click.Choice(PROFILE_NAMES),
            help="Whose sandbox to make: tvix's (seed), today's snix's or Nix's own. It sets the"
            " defaults of --cgroup-namespace, --nofile, --drop-capabilities, --tmp-mode, --device,"
            " --device-rules, --seccomp and --personality.  [default:"
            f" {default['profile']}]",
        ),
        click.option(
            "--nofile",
            type=_NofileType(),
            help="How many files a process may have open; none for as many as the runtime may.",
        ),
        click.option(
            "--drop-capabilities/--keep-capabilities",
            default=None,
            help="Whether to take all capabilities from the build.",
        ),
        click.option("--tmp-mode", metavar="OCTAL", help="The mode of /tmp, such as 1777."),
        click.option(
            "--device",
            metavar="DEVICE",
            multiple=True,
            help="A device node that builds may use if it is among their read-only paths:"
            " /dev/kvm, /dev/fuse, /dev/net/tun or PATH:TYPE:MAJOR:MINOR:ACCESS. Repeatable.",
        ),
        click.option(
            "--device-rules",
            type=click.Choice(get_args(DeviceRules)),
            help="Whether the spec denies all other devices (deny) or has no rules (none).",
        ),
        click.option(
            "--memory", type=_BytesType(), help="Limit of the build's memory, such as 2G."
        ),
        click.option(
            "--cpus",
            type=FiniteRange(min=0.01, max=10_000),
            help="How much CPU time the build may use, in CPUs, such as 1.5.",
        ),
        click.option(
            "--pids", type=click.IntRange(min=1), help="How many processes the build may have."
        ),
        click.option(
            "--cgroups-path",
            metavar="PATH",
            help="The path of the build's cgroup (linux.cgroupsPath).",
        ),
        click.option(
            "--seccomp",
            type=click.Choice(get_args(Seccomp)),
            help="Whether builds run under Nix's seccomp filter (nix): chmod sets no setuid or"
            " setgid bits, and there are no extended attributes.",
        ),
        click.option(
            "--personality",
            type=click.Choice(get_args(Personality)),
            help="Whether builds for i686-linux and 32-bit ARM see a 32-bit machine (system).",
        ),
    )


def given_options(
    *,
    uid_mapping: tuple[IdMapping, ...],
    gid_mapping: tuple[IdMapping, ...],
    id_mappings: str | None,
    device: tuple[str, ...],
    memory: int | None,
    cpus: float | None,
    pids: int | None,
    **same: Any,
) -> GivenOptions:
    """Return what the flags say, and nothing of what they do not.

    Raises:
        click.UsageError: they contradict each other, or the host has no ids to map.
    """
    if id_mappings == "auto":
        if uid_mapping or gid_mapping:
            raise click.UsageError(
                "--id-mappings auto does not go with --uid-mapping or --gid-mapping"
            )
        if same["rootless"] is not False:
            try:
                uid_mapping, gid_mapping = host_id_mappings()
            except (NoSubordinateIds, OSError) as error:
                raise click.UsageError(f"--id-mappings auto: {error}") from None
    limits = Resources(
        memory_bytes=memory or 0,
        cpu_quota_us=round(cpus * _CPU_PERIOD_US) if cpus else 0,
        cpu_period_us=_CPU_PERIOD_US if cpus else 0,
        pids=pids or 0,
    )
    given: GivenOptions = {
        "uid_mappings": uid_mapping,
        "gid_mappings": gid_mapping,
        "devices": device,
        "resources": limits if limits != Resources() else None,
    }
    return cast(GivenOptions, {**given, **same})


_CPU_PERIOD_US = 100_000  # the kernel's own default


def spec_options(given: GivenOptions) -> SpecOptions:
    """Return the options that come of those given, the seed's defaults for the others.

    Raises:
        click.UsageError: they cannot be.
    """
    try:
        return SpecOptions().override(**given)
    except InvalidRequest as error:
        raise click.UsageError(str(error)) from None
