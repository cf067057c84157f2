"""Asking again: how often, and for how long."""

from __future__ import annotations

import random
import time

import grpc

__all__ = ["Attempts"]

# A spec is a pure function of its request, so asking again is always safe. gRPC's own retries
# end where an answer begins, so they are made here.
_MOST_ATTEMPTS = 6  # in a row that brought no answer; a busy machine starts a server in 3 s
_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # seconds before the second attempt; doubled for each one more
# CANCELLED, where we did not cancel: the server stopped before it looked at the call
_TRY_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class Attempts:
    """How often a call was tried, and how long it may still take."""

    def __init__(self, timeout: float | None) -> None:
        self._until = None if timeout is None else time.monotonic() + timeout
        self._failed = 0

    def time_left(self) -> float | None:
        """Return the timeout, in seconds, of the next attempt."""
        return None if self._until is None else max(0.0, self._until - time.monotonic())

    def had_an_answer(self) -> None:
        """Begin to count anew: the server is there."""
        self._failed = 0

    def code_of(self, error: grpc.RpcError) -> grpc.StatusCode:
        """Return why a call failed: a server may see before gRPC here that its time is over."""
        code: grpc.StatusCode = error.code()
        left = self.time_left()
        if code is grpc.StatusCode.CANCELLED and left is not None and left < _PAUSE:
            return grpc.StatusCode.DEADLINE_EXCEEDED
        return code

    def may_go_on_after(self, error: grpc.RpcError) -> bool:
        """Return whether to try once more, after the pause that this takes."""
        if error.code() not in _TRY_AGAIN:
            return False
        self._failed += 1
        pause = min(_LONGEST_PAUSE, _PAUSE * 2 ** (self._failed - 1)) * random.uniform(0.8, 1.2)  # noqa: S311
        left = self.time_left()
        if self._failed >= _MOST_ATTEMPTS or (left is not None and left <= pause):
            return False
        time.sleep(pause)
        return True
