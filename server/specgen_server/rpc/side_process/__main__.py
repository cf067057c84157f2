"""The process itself: takes messages from a socket until that ends."""

from __future__ import annotations

import gc
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from ...settings import read_settings
from ...telemetry.log_output import standard_error
from ...telemetry.logs import configure_logging
from ..errors import status_of
from ..server import spec_service
from ..service import SpecService
from .link import Job, Link, Mark, Reply

_WORTH_LESS = "500"  # than the server, to a kernel that runs out of memory; of 1000


def answered(job: Job, wire: bytes, service: SpecService, given_up: Mark) -> tuple[Reply, bytes]:
    """Return what came of a job, and the answer if there is one."""
    noted: list[int | None] = [None]
    try:
        answer = service.answer_plainly(
            wire, job.options, noted.append, lambda: given_up.get() != job.number
        )
    except Exception as error:
        status = status_of(error, job.request_id)
        return Reply(
            job.number, noted[-1], status.code.name, status.message, status.violations
        ), b""
    return Reply(job.number, noted[-1]), answer


def main(link_fd: int, given_up_fd: int) -> None:
    """Answer one message after the other."""
    settings = read_settings()
    configure_logging(settings.log_format, settings.log_level, standard_error(alone=False))
    with suppress(OSError):  # small calls first, where there are too few processors for both
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_WORTH_LESS)
    given_up = Mark(given_up_fd)
    link = Link(socket.socket(fileno=link_fd), Job)
    service = spec_service(settings)
    gc.freeze()
    with suppress(EOFError, OSError):  # then the server is gone
        link.send(Reply(), b"")
        while True:
            link.send(*answered(*link.receive(), service, given_up))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
    os._exit(0)
