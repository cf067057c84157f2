"""A gRPC server with all its services, bound to its addresses, from settings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc

from ..addresses import AddressError, unix_path
from ..settings import Settings
from ..telemetry.stats import CallRecord
from .call_options import MOST_METADATA_BYTES
from .calls import Calls
from .credentials import server_credentials
from .health import SERVICE_NAME as HEALTH_SERVICE_NAME
from .health import Health
from .reflection import add_reflection
from .service import SERVICE_NAME, SpecServicer

__all__ = ["Server"]


class Server:
    """A server that is not bound and not started, and whose health says SERVING."""

    def __init__(self, settings: Settings, *, enter: Callable[[CallRecord], None]) -> None:
        self._settings = settings
        self.calls = Calls(
            SpecServicer(
                settings.options,
                settings.policy,
                max_message_bytes=settings.max_message_bytes,
                quick=settings.quick,
            ),
            max_in_flight=settings.max_in_flight,
            max_streams=settings.max_streams,
            max_message_bytes=settings.max_message_bytes,
            enter=enter,
            named_callers=settings.tls is not None and settings.tls.client_ca is not None,
        )
        self._grpc = grpc.server(
            ThreadPoolExecutor(4, thread_name_prefix="reflection"),
            options=_options(settings),
        )
        self.calls.add_to_server(self._grpc)
        self.health = Health(["", SERVICE_NAME])
        self.health.add_to_server(self._grpc)
        add_reflection(self._grpc, [SERVICE_NAME, HEALTH_SERVICE_NAME])

    def bind(self, address: str) -> str:
        """Bind a reserved address; return it with the port chosen for port 0.

        Raises:
            AddressError: it cannot be bound after all.
            CredentialsError: the TLS files cannot be used.
        """
        path = unix_path(address)
        mask = os.umask(0o177) if path else None  # until its mode is set, it is ours alone
        try:
            if self._settings.tls is None or path:
                port = self._grpc.add_insecure_port(address)
            else:
                port = self._grpc.add_secure_port(address, server_credentials(self._settings.tls))
        except RuntimeError:
            port = 0
        finally:
            if mask is not None:
                os.umask(mask)
        if port == 0:
            raise AddressError(f"cannot listen on {address}")
        if path is None:
            return f"{address.rpartition(':')[0]}:{port}"
        try:
            if self._settings.unix_group is not None:
                shutil.chown(path, group=self._settings.unix_group)
            path.chmod(self._settings.unix_mode)
        except (OSError, LookupError) as error:
            raise AddressError(f"cannot set the group or mode of {path}: {error}") from None
        return address

    def start(self) -> None:
        """Take calls."""
        self._grpc.start()

    def stop(self, grace: float) -> Callable[[float | None], bool]:
        """Take no more calls, and let those in flight finish within ``grace`` seconds.

        Returns a function that waits, for so many seconds, until that has happened.
        """
        return self._grpc.stop(grace).wait


def _options(settings: Settings) -> list[tuple[str, int]]:
    options = [
        # On by default, and then a second server binds the same port in silence.
        ("grpc.so_reuseport", int(settings.workers > 1)),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        # beyond the first, gRPC refuses at random, and beyond the second always
        ("grpc.max_metadata_size", 4 * MOST_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 8 * MOST_METADATA_BYTES),
        # one connection alone must not take all the threads
        ("grpc.max_concurrent_streams", max(1, settings.max_in_flight // 2)),
        # Clients may keep idle connections alive as they like: no GOAWAY "too_many_pings".
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
        # and the server finds out about those that went away without a word
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]
    if settings.max_connection_age:
        options += [
            ("grpc.max_connection_age_ms", int(settings.max_connection_age * 1000)),
            ("grpc.max_connection_age_grace_ms", int(settings.grace * 1000)),
        ]
    return options
