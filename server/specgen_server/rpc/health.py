"""grpc.health.v1.Health, for probes and for clients that follow it.

Not the servicer that grpcio-health-checking brings: that one holds its lock while gRPC sends,
and wants it again while gRPC's only event thread tells it of a client that left. The two can
meet, and then the server hangs for good (seen with 1.85.1; grpc/grpc pull request 43403).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import (  # type: ignore[attr-defined]  # older stubs
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)

__all__ = ["SERVICE_NAME", "Health"]

SERVICE_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_SERVING = HealthCheckResponse.SERVING
_NOT_SERVING = HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """Says SERVING of the given services, until told that they stop.

    It has threads of its own: slow calls must not make a server look dead.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(services)
        self._status: int = _SERVING
        self._lock = threading.Lock()
        self._watchers: set[_Watcher] = set()
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="health")

    def stop_serving(self) -> None:
        """Say NOT_SERVING from here on, to those who watch at once."""
        with self._lock:
            self._status = _NOT_SERVING
            watchers = list(self._watchers)
        for watcher in watchers:
            self._threads.submit(watcher.update)

    def add_to_server(self, server: grpc.Server) -> None:
        """Register the methods."""
        methods: list[Any] = [self._check, self._watch, self._list]
        for method in methods:
            method.__func__.experimental_thread_pool = self._threads  # where gRPC looks for it
        # and so for this: a watcher takes no thread while nothing changes
        methods[1].__func__.experimental_non_blocking = True
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Check": grpc.unary_unary_rpc_method_handler(
                self._check,
                response_serializer=HealthCheckResponse.SerializeToString,
            ),
            "Watch": grpc.unary_stream_rpc_method_handler(
                self._watch,
                response_serializer=HealthCheckResponse.SerializeToString,
            ),
            "List": grpc.unary_unary_rpc_method_handler(
                self._list,
                response_serializer=HealthListResponse.SerializeToString,
            ),
        }
        server.add_registered_method_handlers(SERVICE_NAME, handlers)

    def _check(self, wire: bytes, context: grpc.ServicerContext) -> HealthCheckResponse:
        request = _parsed(HealthCheckRequest, wire, context)
        if request.service not in self._services:
            context.abort(grpc.StatusCode.NOT_FOUND, "this server has no such service")
        return HealthCheckResponse(status=self._status)

    def _list(self, wire: bytes, context: grpc.ServicerContext) -> HealthListResponse:
        _parsed(HealthListRequest, wire, context)
        status = HealthCheckResponse(status=self._status)
        return HealthListResponse(statuses=dict.fromkeys(self._services, status))

    def _watch(
        self,
        wire: bytes,
        context: grpc.ServicerContext,
        send_response_callback: Callable[[HealthCheckResponse], None],
    ) -> None:
        request = _parsed(HealthCheckRequest, wire, context)
        known = request.service in self._services
        watcher = _Watcher(
            send_response_callback, lambda: self._status if known else _SERVICE_UNKNOWN
        )
        with self._lock:
            self._watchers.add(watcher)
        if not context.add_callback(lambda: self._forget(watcher)):
            self._forget(watcher)  # it has left already
            return
        watcher.update()

    def _forget(self, watcher: _Watcher) -> None:
        with self._lock:
            self._watchers.discard(watcher)


def _parsed(message: Any, wire: bytes, context: grpc.ServicerContext) -> Any:
    """Parse here, since a message that gRPC fails to parse ends as INTERNAL."""
    try:
        return message.FromString(wire)
    except DecodeError:
        pass
    context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"not a {message.DESCRIPTOR.full_name}")


class _Watcher:
    """A client that wants to hear of each change."""

    def __init__(
        self, send: Callable[[HealthCheckResponse], None], status: Callable[[], int]
    ) -> None:
        self._send = send
        self._status = status
        self._sent: int | None = None
        self._sending = threading.Lock()  # held while gRPC sends, and wanted by nobody it calls

    def update(self) -> None:
        """Send the status, if it is another than the last one sent."""
        with self._sending:
            status = self._status()
            if status != self._sent:
                self._sent = status
                self._send(HealthCheckResponse(status=status))
