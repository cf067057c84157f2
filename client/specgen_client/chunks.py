"""The messages of a bulk call, which may take more than one call."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

from specgen.v1.specgen_pb2 import GenerateSpecsRequest, SpecOptions
from tvix.build.protos.build_pb2 import BuildRequest

__all__ = ["Chunks"]

_CHUNK_BYTES = 4 * 1024 * 1024  # specs are about twice as long, and all come in one message


class Chunks:
    """The messages of a bulk call, kept until they are answered.

    ``failure`` is what ended the caller's own iterable.
    """

    def __init__(
        self, requests: Iterable[BuildRequest], options: SpecOptions | None, size: int
    ) -> None:
        self._requests = iter(requests)
        self._options = options
        self._size = size
        self.failure: Exception | None = None
        self._unanswered: deque[GenerateSpecsRequest] = deque()
        self._first = 0  # the number of the first of them
        self._counting = threading.Lock()
        self._taking = threading.Lock()  # held while the caller's iterable is asked
        self._newest = 0

    def from_the_first_unanswered(self) -> Iterator[GenerateSpecsRequest]:
        """Return the messages for another call; those of the one before end."""
        with self._counting:
            self._newest += 1
            return self._messages(self._newest, self._first)

    def answered(self) -> None:
        """Forget the first message: its answer is there."""
        with self._counting:
            self._unanswered.popleft()
            self._first += 1

    def _messages(self, call: int, number: int) -> Iterator[GenerateSpecsRequest]:
        """Yield messages from a number on, to gRPC's thread that sends them."""
        while True:
            message = self._kept(number)
            if message is None:
                # The call before may still wait here for the caller's next request, which may
                # wait for an answer to what we have just sent again.
                with self._taking:
                    if call != self._newest:
                        return
                    message = self._kept(number) or self._take()
            if message is None:
                return
            yield message
            number += 1

    def _kept(self, number: int) -> GenerateSpecsRequest | None:
        with self._counting:
            place = number - self._first
            return self._unanswered[place] if 0 <= place < len(self._unanswered) else None

    def _take(self) -> GenerateSpecsRequest | None:
        message = GenerateSpecsRequest(options=self._options)
        size = 0
        try:
            for request in islice(self._requests, self._size):
                message.requests.append(request)
                size += request.ByteSize()
                if size > _CHUNK_BYTES:
                    break
        except Exception as error:
            self.failure = error
            raise
        if not message.requests:
            return None
        with self._counting:
            self._unanswered.append(message)
        return message
