"""The process itself: takes messages from standard output, which is a socket, until that ends."""

from __future__ import annotations

import gc
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from ...memory import give_back_freed_memory
from ...settings import read_settings
from ...telemetry.log_output import standard_error
from ...telemetry.logs import configure_logging
from ...telemetry.stats import CallRecord
from ..calls import Method
from ..errors import status_of
from ..server import spec_methods
from .link import Job, Link, Mark, Reply

_WORTH_LESS = "500"  # than the server, to a kernel that runs out of memory; of 1000


class _Call:
    """What a method may know of its call, here."""

    def __init__(self, job: Job, given_up: Mark) -> None:
        self.metadata = job.metadata
        self.record = CallRecord(job.method, request_id=job.request_id)
        self._number = job.number
        self._given_up = given_up

    def is_active(self) -> bool:
        """Return whether somebody still waits for the answer."""
        return self._given_up.get() != self._number


def answered(
    job: Job, wire: bytes, methods: dict[str, Method], given_up: Mark
) -> tuple[Reply, bytes]:
    """Return what came of a job, and the answer if there is one."""
    call = _Call(job, given_up)
    try:
        answer = methods[job.method].answer(wire, call)
    except Exception as error:
        status = status_of(error, job.request_id)
        return Reply(call.record, status.code.name, status.message, status.violations), b""
    give_back_freed_memory()  # the server needs some for the answer
    return Reply(call.record), answer


def main(given_up_fd: int) -> None:
    """Answer one message after the other."""
    settings = read_settings()
    configure_logging(settings.log_format, settings.log_level, standard_error(alone=False))
    with suppress(OSError):  # small calls first, where there are too few processors for both
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_WORTH_LESS)
    given_up = Mark(given_up_fd)
    link = Link(socket.socket(fileno=1), Job)
    methods = {method.name: method for method in spec_methods(settings)}
    gc.freeze()
    link.send(Reply(CallRecord("")), b"")
    with suppress(EOFError, OSError):  # then the server is gone
        while True:
            link.send(*answered(*link.receive(), methods, given_up))


if __name__ == "__main__":
    main(int(sys.argv[1]))
    os._exit(0)
