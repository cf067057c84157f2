"""grpc.health.v1.Health, for probes and for clients that follow it.

Not the servicer that grpcio-health-checking brings: that one holds its lock while gRPC sends,
and wants it again while gRPC's only event thread tells it of a client that left. The two can
meet, and then the server hangs for good (seen with 1.85.1; grpc/grpc pull request 43403).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import (  # type: ignore[attr-defined]  # older stubs
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)

from specgen_core import UnreadableMessage

from .calls import Limit, Method
from .errors import UnknownService
from .service import OpenCall

__all__ = ["SERVICE_NAME", "Health"]

SERVICE_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class Health:
    """Says SERVING of the given services, until told that they stop.

    Its calls have a limit of their own: slow ones must not make a server look dead.
    """

    _MOST_CALLS = 256

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(services)
        self._status: int = HealthCheckResponse.SERVING
        limit = Limit(self._MOST_CALLS, "health calls are in flight")
        self.methods = [
            Method(SERVICE_NAME, "Check", self._check, limit),
            Method(SERVICE_NAME, "List", self._list, limit),
            Method(SERVICE_NAME, "Watch", self._watch, limit, kind="watch"),
        ]
        self.when_changed: Callable[[], object] = int  # nobody watches yet

    def stop_serving(self) -> None:
        """Say NOT_SERVING from here on, to those who watch at once."""
        self._status = HealthCheckResponse.NOT_SERVING
        self.when_changed()

    def _check(self, wire: bytes, _: OpenCall) -> bytes:
        if _parsed(HealthCheckRequest, wire).service not in self._services:
            raise UnknownService
        return bytes(HealthCheckResponse(status=self._status).SerializeToString())

    def _list(self, wire: bytes, _: OpenCall) -> bytes:
        _parsed(HealthListRequest, wire)
        status = HealthCheckResponse(status=self._status)
        answer = HealthListResponse(statuses=dict.fromkeys(self._services, status))
        return bytes(answer.SerializeToString())

    def _watch(self, wire: bytes, _: OpenCall) -> bytes:
        known = _parsed(HealthCheckRequest, wire).service in self._services
        status = self._status if known else HealthCheckResponse.SERVICE_UNKNOWN
        return bytes(HealthCheckResponse(status=status).SerializeToString())


def _parsed(message: Any, wire: bytes) -> Any:
    try:
        return message.FromString(wire)
    except DecodeError:
        raise UnreadableMessage(message.DESCRIPTOR.full_name) from None
