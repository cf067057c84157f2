"""A bounded memo whose hits cost one dictionary look-up."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from threading import Lock
from typing import Any, TypeVar
from weakref import WeakValueDictionary

__all__ = ["Memo", "forget_all"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_UNKNOWN: Any = object()


class Memo(dict[K, V]):
    """A pure function with its recent results: ``memo[key]`` is ``function(key)``.

    A dictionary, so that ``map(memo.__getitem__, keys)`` stays in C for every hit.
    It holds two generations of at most ``limit`` results each: when the younger is
    full it becomes the older one, and what the older one held is forgotten. A
    result that is asked for again is carried into the younger. Exceptions are not
    kept, nor are results for keys whose ``size`` is more than ``longest``; one for a
    key of more than 256 bytes counts once more for each 256. Threads may share a memo:
    at worst they compute a result twice.
    """

    _COUNTS_ONCE = 256

    def __init__(
        self,
        function: Callable[[K], V],
        *,
        limit: int,
        longest: int,
        size: Callable[[K], int] = len,  # type: ignore[assignment]  # of those that have one
    ) -> None:
        super().__init__()
        _all_memos[id(self)] = self
        self._function: Callable[[K], V] = function
        self._limit = limit
        self._longest = longest
        self._size: Callable[[K], int] = size
        self._older: dict[K, V] = {}
        self._held = 0
        self._beginning = Lock()

    def __missing__(self, key: K) -> Any:
        value = self._older.get(key, _UNKNOWN)
        if value is _UNKNOWN:
            value = self._function(key)
        size = self._size(key)
        if size <= self._longest:
            if self._held >= self._limit:
                self._begin_generation()
            self._held += 1 + size // self._COUNTS_ONCE
            self[key] = value
        return value

    def _begin_generation(self) -> None:
        with self._beginning:  # or two threads would, one after the other
            if self._held >= self._limit:
                self._older = self.copy()
                self.clear()
                self._held = 0

    def over(self, keys: Sequence[K]) -> Callable[[K], V]:
        """Return what to map over these keys: the plain function, if they are more than it holds.

        They would push out one another, and all that is known now.
        """
        if len(keys) <= self._limit or len(set(keys)) <= self._limit:
            return self.__getitem__
        return self._function

    def forget(self) -> None:
        """Hold nothing."""
        self.clear()
        self._older = {}
        self._held = 0


_all_memos: WeakValueDictionary[int, Memo[Any, Any]] = WeakValueDictionary()


def forget_all() -> None:
    """Empty every memo, so that the process is as if it were new: to test and to measure."""
    for memo in _all_memos.values():
        memo.forget()
