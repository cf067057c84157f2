"""What a server is told at its start."""

from __future__ import annotations

import os
import sys
from typing import IO, Literal

import msgspec

from specgen_core import SpecOptions

from .policy import Policy
from .tls_files import TlsFiles

__all__ = ["Settings", "file_of", "read_settings"]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a worker needs to know; other processes of ours get it as JSON."""

    listen: tuple[str, ...] = ("127.0.0.1:50051",)
    unix_mode: int = 0o660
    unix_group: str | None = None
    tls: TlsFiles | None = None
    options: SpecOptions = msgspec.field(default_factory=SpecOptions)
    policy: Policy = msgspec.field(default_factory=Policy)

    workers: int = 1
    quick: bool = True
    """Whether routine requests are answered from pieces of earlier answers."""
    max_message_bytes: int = 64 * 1024 * 1024
    max_elements: int = 15_000
    max_paths: int = 4_096
    max_builds: int = 10_000
    max_in_flight: int = 256
    """Unary calls at a time in one worker; beyond it, RESOURCE_EXHAUSTED."""
    max_streams: int = 64
    """Bulk calls at a time in one worker; beyond it, RESOURCE_EXHAUSTED."""
    call_lane: bool = True
    """Serve calls from gRPC core's own queue, where the installed grpcio has what that needs."""
    max_connection_age: float = 0
    """Seconds after which a client is asked to connect anew; 0 for never."""

    drain_delay: float = 0
    """Seconds between saying NOT_SERVING and taking no more calls."""
    grace: float = 30.0
    """Seconds that calls in flight then get to finish."""

    metrics: str | None = None
    log_format: Literal["human", "json"] = "human"
    log_level: str = "info"


def file_of(settings: Settings) -> IO[bytes]:
    """Return a file in memory that holds them, for the standard input of a process."""
    file = os.fdopen(os.memfd_create("settings"), "w+b")
    file.write(msgspec.json.encode(settings))
    file.seek(0)
    return file


def read_settings() -> Settings:
    """Read what ``file_of`` wrote from standard input."""
    return msgspec.json.decode(sys.stdin.buffer.read(), type=Settings)
