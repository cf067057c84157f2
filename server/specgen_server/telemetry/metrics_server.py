"""Serving the metrics over HTTP, even while clients stall."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from http.server import ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import MetricsHandler
from prometheus_client.registry import Collector

from ..addresses import AddressError, host_and_port, is_wildcard

__all__ = ["serve_metrics"]

_MOST_CONNECTIONS = 16  # beyond it, the oldest one ends
_TIMEOUT = 5.0  # seconds, for each part of a request


def serve_metrics(address: str, metrics: Collector) -> None:
    """Serve ``/metrics`` at HOST:PORT for as long as this process lives.

    Raises:
        AddressError: it cannot be listened on.
    """
    registry = CollectorRegistry()
    registry.register(metrics)
    try:
        server = _Server(_listening(*host_and_port(address)), registry)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise AddressError(f"cannot serve metrics at {address}: {why}") from None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


def _listening(host: str, port: int) -> socket.socket:
    """Listen as gRPC does: at either wildcard for IPv6 and IPv4, where the host has both."""
    if is_wildcard(host):
        try:
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
        host = "0.0.0.0"  # noqa: S104
    family, _, _, _, sockaddr = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(sockaddr, family=family)


class _Handler(MetricsHandler):
    timeout = _TIMEOUT


class _Server(ThreadingHTTPServer):
    """A thread a connection; idle ones make room for new ones."""

    def __init__(self, listening: socket.socket, registry: CollectorRegistry) -> None:
        super().__init__(
            listening.getsockname()[:2], _Handler.factory(registry), bind_and_activate=False
        )
        self.socket.close()
        self.socket = listening
        self._open: dict[socket.socket, None] = {}  # the oldest comes first
        self._opening = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._opening:
            if len(self._open) >= _MOST_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # and its thread ends
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._opening:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""
