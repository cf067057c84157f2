"""A gRPC server with all its services, from settings."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from .reflection import add_reflection
from .service import SERVICE_NAME, SpecServicer, add_to_server
from .settings import Settings

__all__ = ["build_server"]


def build_server(settings: Settings) -> tuple[grpc.Server, health.HealthServicer]:
    """Return a server, not bound and not started, and its health, which says SERVING."""
    server = grpc.server(
        ThreadPoolExecutor(settings.threads, thread_name_prefix="call"),
        options=[
            # On by default, and then a second server binds the same port in silence.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
        ],
    )
    add_to_server(SpecServicer(settings.options), server)
    # threads of its own: a slow call must not make the server look dead
    healthy = health.HealthServicer(
        experimental_non_blocking=True,
        experimental_thread_pool=ThreadPoolExecutor(1, thread_name_prefix="health"),
    )
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    add_reflection(server, [SERVICE_NAME, health.SERVICE_NAME])
    for service in ("", SERVICE_NAME):
        healthy.set(service, health_pb2.HealthCheckResponse.SERVING)
    return server, healthy
