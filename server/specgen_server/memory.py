"""How glibc deals with memory that is free again; other C libraries are left as they are."""

from __future__ import annotations

import os
from contextlib import suppress

__all__ = ["WORTH_GIVING_BACK", "give_back_freed_memory", "keep_freed_memory"]

WORTH_GIVING_BACK = 2 * 1024 * 1024
"""Bytes of a message of which what it took is given back; with all memory, that takes time."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT = 8 * 1024 * 1024  # bytes
_ALONE = 2 * 1024 * 1024  # bytes from which on an allocation is a mapping of its own


def keep_freed_memory() -> None:
    """Have what one message took serve the next, instead of going back to the kernel.

    glibc gives back what is free beyond some 128 KiB. Of a message of 300 KiB and its answer,
    having the kernel clear and map them anew takes a quarter of the time. What an operator
    set in the environment holds.
    """
    if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        _call("mallopt", _M_MMAP_THRESHOLD, _ALONE)
        _call("mallopt", _M_TRIM_THRESHOLD, _KEPT)


def give_back_freed_memory() -> None:
    """Have the kernel take what is free, before much more is needed elsewhere."""
    _call("malloc_trim", 0)


def _call(function: str, *arguments: int) -> None:
    with suppress(AttributeError, ImportError, MemoryError, OSError):
        import ctypes  # which wants executable memory, and may not get it

        getattr(ctypes.CDLL(None), function)(*arguments)
