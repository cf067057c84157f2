"""What is known already, bounded in bytes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

__all__ = ["Pieces"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_OVERHEAD = 256  # bytes, at the most, of a key, a value and their place in a dictionary


class Pieces(dict[K, V]):
    """What was made of recent keys: at most ``most`` bytes of it, then it begins anew.

    ``pieces[key]`` is what ``make`` makes of the key; what it raises is not kept. Threads may
    share it: at worst they make a piece twice, and the count of bytes is off by a few of them.
    """

    def __init__(self, make: Callable[[K], V], *, most: int, size: Callable[[K, V], int]) -> None:
        super().__init__()
        self._make, self._most, self._size = make, most, size
        self._held = 0

    def __missing__(self, key: K) -> V:
        piece = self._make(key)
        size = self._size(key, piece) + _OVERHEAD
        if size <= self._most:
            if self._held + size > self._most:
                self.forget()
            self._held += size
            self[key] = piece
        return piece

    @property
    def held(self) -> int:
        """How many bytes are held, about."""
        return self._held

    def forget(self) -> None:
        """Hold nothing."""
        self.clear()
        self._held = 0
