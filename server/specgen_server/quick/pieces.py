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
        known = {key: self[key] for key in keys if key in self}
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        made = dict(zip(missing, self._make(missing)))
        for key, value in made.items():
            self._keep(key, value)
        known.update(made)
        return [*map(known.__getitem__, keys)]

    def _keep(self, key: K, value: V) -> None:
        size = self._size(key, value) + _OVERHEAD
        if size > self._most:
            return
        if self._held + size > self._most:
            self.forget()
        self._held += size
        self[key] = value

    @property
    def held(self) -> int:
        """How many bytes are held, about."""
        return self._held

    def forget(self) -> None:
        """Hold nothing."""
        self.clear()
        self._held = 0
