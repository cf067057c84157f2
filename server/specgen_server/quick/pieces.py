"""What is known already, bounded in bytes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

__all__ = ["Pieces"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_MISSING: Any = object()
_OVERHEAD = 256  # bytes, at the most, of a key, a value and their place in a dictionary


class Pieces(dict[K, V]):
    """What was made of recent keys: at most ``most`` bytes of it, then it begins anew.

    Threads may share it: at worst they make a piece twice, and the count of bytes is off by a
    few of them.
    """

    def __init__(
        self,
        make: Callable[[list[K]], list[V]],
        *,
        most: int,
        size: Callable[[K, V], int],
    ) -> None:
        """Take what makes the pieces of several keys; what it raises is not kept."""
        super().__init__()
        self._make, self._most, self._size = make, most, size
        self._held = 0

    def one(self, key: K) -> V:
        """Return the piece of a key."""
        try:
            return self[key]
        except KeyError:
            return self.of([key])[0]

    def of(self, keys: list[K]) -> list[V]:
        """Return the pieces of these keys."""
        try:
            return [*map(self.__getitem__, keys)]  # in C for what is known
        except KeyError:
            pass
        found = [self.get(key, _MISSING) for key in keys]
        missing = [*{key: None for key, piece in zip(keys, found) if piece is _MISSING}]
        made = dict(zip(missing, self._make(missing)))
        self._keep(made)
        return [made[key] if piece is _MISSING else piece for key, piece in zip(keys, found)]

    def _keep(self, made: dict[K, V]) -> None:
        size = sum(map(self._size, made.keys(), made.values())) + len(made) * _OVERHEAD
        if size > self._most:
            return
        if self._held + size > self._most:
            self.forget()
        self._held += size
        self.update(made)

    @property
    def held(self) -> int:
        """How many bytes are held, about."""
        return self._held

    def forget(self) -> None:
        """Hold nothing."""
        self.clear()
        self._held = 0
