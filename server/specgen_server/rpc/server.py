"""A gRPC server with all its services, bound to its addresses, from settings."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from time import monotonic

from ..addresses import AddressError, unix_path
from ..settings import Settings
from ..telemetry.stats import CallRecord
from .call_lane import CallLane, missing
from .call_options import MOST_METADATA_BYTES
from .calls import Calls, Limit, Method
from .credentials import server_credentials
from .health import SERVICE_NAME as HEALTH_SERVICE_NAME
from .health import Health
from .message_limits import MessageLimits, is_light_bulk
from .public_way import PublicWay
from .reflection import reflection_methods
from .service import SERVICE_NAME, SpecService
from .side_process import SideProcess

__all__ = ["Server", "spec_methods"]

logger = logging.getLogger(__name__)

_LOOK_EVERY = 0.05  # seconds, while it stops


class Server:
    """A server that is not bound and not started, and whose health says SERVING."""

    def __init__(self, settings: Settings, *, enter: Callable[[CallRecord], None]) -> None:
        self._settings = settings
        self._calls = Calls(
            enter=enter,
            named_callers=settings.tls is not None and settings.tls.client_ca is not None,
        )
        self.health = Health(["", SERVICE_NAME])
        self._side = SideProcess(settings)
        methods = [
            *spec_methods(settings, self._side),
            *self.health.methods,
            *reflection_methods([SERVICE_NAME, HEALTH_SERVICE_NAME]),
        ]
        lacks = missing() if settings.call_lane else []
        if lacks:
            logger.warning("grpcio lacks what the call lane needs: %s", ", ".join(lacks))
        self.on_lane = settings.call_lane and not lacks
        way = CallLane if self.on_lane else PublicWay
        self._way = way(self._calls, methods, settings.max_message_bytes, _options(settings))
        self.health.when_changed = self._way.answers_changed
        logger.info("calls come in by %s", "the call lane" if self.on_lane else "grpc.server()")

    @property
    def in_flight(self) -> int:
        """How many calls of ours have come in, and have not ended with their answer sent."""
        return self._way.in_flight

    def bind(self, address: str) -> str:
        """Bind a reserved address; return it with the port chosen for port 0.

        Raises:
            AddressError: it cannot be bound after all.
            CredentialsError: the TLS files cannot be used.
        """
        path = unix_path(address)
        mask = os.umask(0o177) if path else None  # until its mode is set, it is ours alone
        try:
            tls = None if path else self._settings.tls
            port = self._way.add_port(address, server_credentials(tls) if tls else None)
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
        self._way.start()

    def stop(self, grace: float) -> Callable[[float], bool]:
        """Take no more calls, and let those in flight finish within ``grace`` seconds.

        Returns a function that waits, for so many seconds, until that has happened.
        """
        stopped = self._way.stop(grace)

        def wait(seconds: float) -> bool:
            until = monotonic() + seconds
            while not stopped.wait(max(0.0, min(_LOOK_EVERY, until - monotonic()))):
                self._way.let_go()
                if monotonic() >= until:
                    return False
            self._way.close()
            self.close()
            return True

        return wait

    def close(self) -> None:
        """End what does not end by itself."""
        self._side.close()
        self._calls.close()


def spec_service(settings: Settings, side: SideProcess | None = None) -> SpecService:
    """Return what answers; with a side process, the largest requests there."""
    limits = MessageLimits(
        max_message_bytes=settings.max_message_bytes,
        max_elements=settings.max_elements,
        max_paths=settings.max_paths,
        max_builds=settings.max_builds,
    )
    return SpecService(settings.options, settings.policy, limits, quick=settings.quick, side=side)


def spec_methods(settings: Settings, side: SideProcess | None = None) -> list[Method]:
    """Return the methods of SpecService: GenerateSpec, and GenerateSpecs."""
    service = spec_service(settings, side)
    calls = Limit(settings.max_in_flight, "calls are in flight")
    streams = Limit(settings.max_streams, "calls are in flight")
    return [
        Method(SERVICE_NAME, "GenerateSpec", service.generate_spec, calls, recorded=True),
        Method(
            *(SERVICE_NAME, "GenerateSpecs", service.generate_specs, streams, "stream"),
            is_light=is_light_bulk,
            recorded=True,
        ),
    ]


_MOST_STREAMS_OF_A_CONNECTION = 10_000


def _options(settings: Settings) -> list[tuple[str, int]]:
    options = [
        # On by default, and then a second server binds the same port in silence.
        ("grpc.so_reuseport", int(settings.workers > 1)),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        # beyond the first, gRPC refuses at random, and beyond the second always
        ("grpc.max_metadata_size", 4 * MOST_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 8 * MOST_METADATA_BYTES),
        # Beyond it gRPC says UNAVAILABLE; below it, our own limits say RESOURCE_EXHAUSTED.
        ("grpc.max_concurrent_streams", _MOST_STREAMS_OF_A_CONNECTION),
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
