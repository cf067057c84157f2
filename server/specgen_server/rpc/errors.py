"""The one table from exceptions to gRPC status codes, and how a status leaves the server."""

from __future__ import annotations

import logging
from typing import NamedTuple, NoReturn

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status as RpcStatus

from specgen_core import InvalidRequest, UnreadableMessage, Violation

from ..policy import Denied

__all__ = [
    "CallerGone",
    "NoMessage",
    "Overloaded",
    "Refused",
    "SideProcessDied",
    "Status",
    "TooLarge",
    "TooMany",
    "UnknownMethod",
    "UnknownService",
    "abort",
    "status_of",
    "trailers_of",
]

logger = logging.getLogger(__name__)


class Overloaded(Exception):
    """There is as much in flight as the server takes."""

    def __init__(self, limit: int, of: str) -> None:
        super().__init__(f"{limit} {of}, which is this server's limit: try later")


class CallerGone(Exception):
    """Nobody waits for the answer any more."""

    def __init__(self) -> None:
        super().__init__("the caller is gone, or its deadline is over")


class NoMessage(Exception):
    """A method that takes one message was sent none."""

    def __init__(self) -> None:
        super().__init__("this method takes exactly one message, and none came")


class UnknownMethod(Exception):
    """A method was called that is not here."""

    def __init__(self) -> None:
        super().__init__("Method not found!")  # as grpc.server() says


class UnknownService(Exception):
    """Health was asked of a service that is not here."""

    def __init__(self) -> None:
        super().__init__("this server has no such service")


class SideProcessDied(Exception):
    """The process that was to answer a very large message has ended."""

    def __init__(self) -> None:
        super().__init__("the process that was to answer this message has ended: try again")


class TooLarge(Exception):
    """The answer is longer than this server sends."""

    def __init__(self, size: int, limit: int, why: str) -> None:
        super().__init__(
            f"the answer takes {size} bytes, and this server sends at most {limit} ({why})"
        )


class TooMany(Exception):
    """A list in a message is longer than this server reads."""

    def __init__(self, field: str, limit: int, flag: str) -> None:
        super().__init__(
            f"{field}: must have at most {limit} elements, which is this server's limit ({flag})"
        )


class Refused(Exception):
    """A call ends with a status that was found elsewhere."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status


_CODES: dict[type[Exception], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    UnreadableMessage: grpc.StatusCode.INVALID_ARGUMENT,
    Denied: grpc.StatusCode.PERMISSION_DENIED,
    CallerGone: grpc.StatusCode.CANCELLED,
    NoMessage: grpc.StatusCode.UNIMPLEMENTED,  # what gRPC's own servers say of it
    SideProcessDied: grpc.StatusCode.UNAVAILABLE,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooMany: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnknownMethod: grpc.StatusCode.UNIMPLEMENTED,
    UnknownService: grpc.StatusCode.NOT_FOUND,
}

# Details travel in the trailers. Clients of gRPC drop trailers above 16 KiB whole, and those
# above 8 KiB now and then, the more often the larger they are. In them are the violations, the
# message twice, once with three bytes for a quote, and some 200 bytes besides.
_MOST_VIOLATIONS = 50
_MOST_BYTES = 6 * 1024
_MOST_MESSAGE_CHARS = 400


class Status(NamedTuple):
    """How a call, or one build of a bulk call, ends without a spec."""

    code: grpc.StatusCode
    message: str
    violations: list[Violation]

    @property
    def field(self) -> str:
        """The first field that breaks a rule, if it is that."""
        return self.violations[0].field if self.violations else ""


def status_of(error: Exception, request_id: str = "") -> Status:
    """Return the status for an exception; one that is not in the table is logged, and INTERNAL.

    ``request_id`` is that of the call, for the line in the log.
    """
    if isinstance(error, Refused):
        return error.status
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), None)
    if code is None:
        logger.error("unexpected error", exc_info=error, extra={"request_id": request_id})
        return Status(grpc.StatusCode.INTERNAL, "internal error; the server's log has more", [])
    if not isinstance(error, InvalidRequest | Denied):
        return Status(code, str(error), [])

    sent = _that_fit(error.violations)
    message = str(error.violations[0])
    if error.total > 1:
        message = f"{error.total} violations, the first: {message}"
    message = message[:_MOST_MESSAGE_CHARS]
    if error.total > len(sent):
        message += f" (the details hold {len(sent)}, {error.total - len(sent)} more do not fit)"
    return Status(code, message, sent)


def _that_fit(violations: list[Violation]) -> list[Violation]:
    framing = 8  # bytes of tags and lengths for each, at the most
    sent: list[Violation] = []
    room = _MOST_BYTES
    for violation in violations[:_MOST_VIOLATIONS]:
        room -= len(violation.field.encode()) + len(violation.description.encode()) + framing
        if room < 0:
            break
        sent.append(violation)
    return sent


def trailers_of(status: Status) -> tuple[tuple[str, bytes], ...]:
    """Return the trailing metadata of a status: its violations as google.rpc.BadRequest.

    It is what grpcio-status and clients of other languages read.
    """
    if not status.violations:
        return ()
    bad_request = BadRequest(
        field_violations=[
            BadRequest.FieldViolation(field=v.field, description=v.description)
            for v in status.violations
        ]
    )
    details = Any()
    details.Pack(bad_request)
    rich = RpcStatus(code=status.code.value[0], message=status.message, details=[details])
    return (("grpc-status-details-bin", rich.SerializeToString()),)


def abort(context: grpc.ServicerContext, status: Status) -> NoReturn:
    """End the call with a status. It raises, so call it outside any ``try``.

    context.abort_with_status would do the same, but no test channel knows it.
    """
    if trailers := trailers_of(status):
        context.set_trailing_metadata(trailers)
    context.abort(status.code, status.message)
