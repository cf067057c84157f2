"""What the lane uses of ``grpc._cython.cygrpc``, and whether it is there."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import grpc

from ..errors import Status, trailers_of

try:
    from grpc._cython import cygrpc  # type: ignore[attr-defined]
except ImportError:
    cygrpc = None

__all__ = [
    "add_port",
    "auth_context",
    "close",
    "completion_queue",
    "core_server",
    "headers",
    "message",
    "missing",
    "ok",
    "receive",
    "refusal",
]

_NEEDED: dict[str, str | None] = {
    "Server.add_http2_port": "self address server_credentials",
    "Server.cancel_all_calls": "self",
    "Server.destroy": "self",
    "Server.register_completion_queue": "self queue",
    "Server.register_method": "self fully_qualified_method",
    "Server.request_call": "self call_queue server_queue tag",
    "Server.request_registered_call": "self call_queue server_queue method tag",
    "Server.shutdown": "self queue tag",
    "Server.start": "self backup_queue",
    "CompletionQueue.poll": "self deadline",
    "CompletionQueue.shutdown": "self",
    "Call.start_server_batch": "self operations tag",
    "Call.cancel": "self error_code details",
    "Call.peer": "self",
    "auth_context": "call",
    "RequestCallEvent.call": None,
    "RequestCallEvent.call_details": None,
    "RequestCallEvent.invocation_metadata": None,
    "RequestCallEvent.success": None,
    "RequestCallEvent.tag": None,
    "CallDetails.deadline": None,
    "BatchOperationEvent.batch_operations": None,
    "BatchOperationEvent.success": None,
    "BatchOperationEvent.tag": None,
    "ReceiveMessageOperation.message": "self",
    "ReceiveCloseOnServerOperation.cancelled": "self",
}
"""What the lane leans on, with the parameters of what it calls."""


def missing() -> list[str]:
    """Return the names of what the lane needs of grpcio and is not there, or not as it was."""
    lacks = [f"cygrpc.{name}" for name, of in _NEEDED.items() if not _is_as_it_was(name, of)]
    if not hasattr(grpc.ServerCredentials(None), "_credentials"):
        lacks.append("grpc.ServerCredentials._credentials")
    for make in (headers, receive, close, ok, message, completion_queue, partial(core_server, ())):
        try:
            make()
        except (AttributeError, TypeError) as error:
            lacks.append(f"an object of cygrpc ({error})")
    return lacks


def _is_as_it_was(name: str, parameters: str | None) -> bool:
    found: Any = cygrpc
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None or parameters is None:
        return found is not None
    try:
        return list(inspect.signature(found).parameters) == parameters.split()
    except (TypeError, ValueError):
        return False


def core_server(options: Sequence[tuple[str, int]]) -> Any:
    """Return a server of the core, which takes no calls yet."""
    return cygrpc.Server(tuple(options), False)


def add_port(server: Any, address: str, credentials: grpc.ServerCredentials | None) -> int:
    """Bind an address; return its port, 0 where that fails."""
    own = credentials._credentials if credentials else None  # type: ignore[attr-defined]
    port: int = server.add_http2_port(address.encode(), own)
    return port


def completion_queue() -> Any:
    """Return a queue of events, for one thread to poll."""
    return cygrpc.CompletionQueue()


def auth_context(call: Any) -> dict[str, Any]:
    """Return what is known of the caller by its certificate."""
    given = cygrpc.auth_context(call) or {}
    return {key.decode(): value for key, value in given.items()}


# An operation holds memory of the core and belongs to one batch, so each is made anew.


def headers() -> Any:
    """Send no headers of ours, which begins an answer."""
    return cygrpc.SendInitialMetadataOperation((), 0)


def receive() -> Any:
    """Receive a message, or None if the client sends no more."""
    return cygrpc.ReceiveMessageOperation(0)


def message(wire: bytes = b"") -> Any:
    """Send a message."""
    return cygrpc.SendMessageOperation(wire, 0)


def ok() -> Any:
    """Send the status OK."""
    return cygrpc.SendStatusFromServerOperation((), 0, "", 0)


def refusal(status: Status) -> Any:
    """Send another status."""
    code = status.code.value[0]
    return cygrpc.SendStatusFromServerOperation(trailers_of(status), code, status.message, 0)


def close() -> Any:
    """Find out how the call ended."""
    return cygrpc.ReceiveCloseOnServerOperation(0)
