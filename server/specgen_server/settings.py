"""What a server is told at its start."""

from __future__ import annotations

from dataclasses import dataclass, field

from .spec import SpecOptions

__all__ = ["Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a worker needs to know; it can be pickled."""

    listen: tuple[str, ...] = ("127.0.0.1:50051",)
    options: SpecOptions = field(default_factory=SpecOptions)
    max_message_bytes: int = 64 * 1024 * 1024
    threads: int = 4
    grace: float = 10.0
    """Seconds that calls in flight get to finish, once the server stops."""
