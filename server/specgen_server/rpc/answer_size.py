"""Answers that this server would not send are refused before they are made."""

from __future__ import annotations

from specgen_core import Request

from .errors import TooLarge

__all__ = ["check_answer_size", "least_answer_bytes"]

_MOUNT = len('{"destination":"/","type":"none","source":"","options":["rbind","rw"]},')


def check_answer_size(request: Request, most: int) -> None:
    """Raise TooLarge where the answer to a request takes more than so many bytes for certain."""
    least = least_answer_bytes(request)
    if least > most:
        raise TooLarge(least, most)


def least_answer_bytes(request: Request) -> int:
    """Return a lower bound of the answer's length, in bytes."""
    texts = [
        *request.command_args,
        *(variable.value for variable in request.environment),
        *request.scratch_paths,
        *request.constraints.available_ro_paths,
        *(output.path for output in request.outputs),
    ]
    mounts = len(request.scratch_paths) + len(request.inputs)
    mounts += len(request.constraints.available_ro_paths)
    in_mounts = len(request.inputs) * len(request.inputs_dir) + 2 * sum(map(len, request.inputs))
    return sum(map(len, texts)) + mounts * _MOUNT + in_mounts
