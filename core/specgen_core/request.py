"""What a build request is once it has been read: plain values that break no rule.

Paths are relative to the sandbox's root, without a leading slash; those of the host are
absolute.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

__all__ = [
    "AdditionalFile",
    "Constraints",
    "EnvVar",
    "InputKind",
    "Output",
    "Request",
]

InputKind: TypeAlias = Literal["directory", "file", "symlink"]


class EnvVar(msgspec.Struct, frozen=True, gc=False):
    """An environment variable of the build."""

    key: str
    value: str


class Output(msgspec.Struct, frozen=True, gc=False):
    """A path that the build must leave behind, and the nearest scratch path at or above it."""

    path: str
    scratch: str


class AdditionalFile(msgspec.Struct, frozen=True, gc=False):
    """A file to be laid into the sandbox before the build starts."""

    path: str
    contents: bytes


class Constraints(msgspec.Struct, frozen=True):
    """What the build wants of its host. The defaults are those of a request without any."""

    system: str = ""
    available_ro_paths: tuple[str, ...] = ()
    network_access: bool = False
    provide_bin_sh: bool = False


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A valid tvix.build.v1.BuildRequest: what the spec depends on, and what a builder needs."""

    inputs: dict[str, InputKind]
    """The nodes of the store by name, sorted; each is mounted read-only at ``inputs_dir/name``."""
    command_args: list[str]
    working_dir: str
    scratch_paths: list[str]
    inputs_dir: str
    outputs: list[Output]
    environment: list[EnvVar]
    constraints: Constraints
    additional_files: list[AdditionalFile]
    command_is_plain_file: bool
    """Whether the command is an input that is a file, and not executable."""
