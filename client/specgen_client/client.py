"""A thin typed stub of specgen.v1.SpecService.

::

    SpecgenError
     ├─ RequestRefused      the server refused the request; its violations are listed
     ├─ ServerUnavailable   no server there, or it is going away
     ├─ DeadlineExceeded    no answer in time
     └─ CallFailed          anything else
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_status import rpc_status

from specgen.v1.specgen_pb2 import (
    FieldViolation,
    GenerateSpecsRequest,
    SpecError,
    SpecJSON,
    SpecOptions,
)
from specgen.v1.specgen_pb2_grpc import SpecServiceStub
from tvix.build.protos.build_pb2 import BuildRequest

__all__ = [
    "CallFailed",
    "DeadlineExceeded",
    "RequestRefused",
    "ServerUnavailable",
    "SpecClient",
    "SpecgenError",
    "Tls",
]


class SpecgenError(Exception):
    """A call, or one build of a bulk call, that ended without a spec."""

    def __init__(
        self, code: grpc.StatusCode, details: str, violations: Iterable[FieldViolation] = ()
    ) -> None:
        super().__init__(code, details)
        self.code = code
        self.details = details
        self.violations = list(violations)

    def __str__(self) -> str:
        return f"{self.code.name}: {self.details}"


class RequestRefused(SpecgenError):
    """INVALID_ARGUMENT or PERMISSION_DENIED; ``violations`` says which fields and why."""


class ServerUnavailable(SpecgenError):
    """UNAVAILABLE, after all retries: no server there, or it is going away."""


class DeadlineExceeded(SpecgenError):
    """DEADLINE_EXCEEDED: the server did not answer in time."""


class CallFailed(SpecgenError):
    """Any other status; ``code`` has it."""


_ERRORS: dict[grpc.StatusCode, type[SpecgenError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: RequestRefused,
    grpc.StatusCode.PERMISSION_DENIED: RequestRefused,
    grpc.StatusCode.UNAVAILABLE: ServerUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True)
class Tls:
    """TLS by PEM files. Without ``ca`` the system's roots are trusted."""

    ca: Path | None = None
    cert: Path | None = None
    """The client's own certificate, for mTLS; with ``key``."""
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files. Raises OSError."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca.read_bytes() if self.ca else None,
            private_key=self.key.read_bytes() if self.key else None,
            certificate_chain=self.cert.read_bytes() if self.cert else None,
        )


_MAX_MESSAGE_BYTES = 64 * 1024 * 1024  # as the server's default; gRPC's own is 4 MiB
_CHUNK = 64
_CHUNK_BYTES = 4 * 1024 * 1024  # specs are about twice as long, and all come in one message
_SERVICE = "specgen.v1.SpecService"

# A spec is a pure function of its request, so asking again is always safe.
_RETRY_POLICY = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    # CANCELLED, where we did not cancel: the server stopped before it looked at the call
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}


class SpecClient:
    """A connection to one server, or with ``dns:///name:port`` to all behind a name, in turn.

    Threads may share it. Close it, or use it as a context manager.

    Args:
        target: ``host:port``, ``unix:///path`` or ``dns:///name:port``.
        tls: how to speak TLS; None for plain text.
        timeout: of a call, in seconds; None for no limit.
        wait_for_ready: wait for a server to come up, until the timeout, instead of
            failing with ServerUnavailable once the retries are used up.
    """

    def __init__(
        self,
        target: str,
        *,
        tls: Tls | None = None,
        timeout: float | None = 30.0,
        wait_for_ready: bool = False,
    ) -> None:
        self._target = target
        self._credentials = tls.credentials() if tls else None
        self._timeout = timeout
        self._wait_for_ready = wait_for_ready
        # a server that is about to stop says so in its health, before it refuses any call
        self._channel = self._connect(healthCheckConfig={"serviceName": _SERVICE})
        self._stub = SpecServiceStub(self._channel)

    def _connect(self, **service_config: object) -> grpc.Channel:
        service_config |= {
            "loadBalancingConfig": [{"round_robin": {}}],
            "methodConfig": [
                {
                    "name": [{"service": _SERVICE}, {"service": "grpc.health.v1.Health"}],
                    "waitForReady": self._wait_for_ready,
                    "retryPolicy": _RETRY_POLICY,
                }
            ],
        }
        channel_options = [
            ("grpc.service_config", json.dumps(service_config)),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            # a server that restarts is back in less than a second
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 5_000),
            # a refusal may come with many details
            ("grpc.max_metadata_size", 16 * 1024),
            ("grpc.absolute_max_metadata_size", 64 * 1024),
            # a call is retried only while all of it is still at hand
            ("grpc.per_rpc_retry_buffer_size", _MAX_MESSAGE_BYTES),
        ]
        if self._credentials is None:
            return grpc.insecure_channel(self._target, channel_options)
        return grpc.secure_channel(self._target, self._credentials, channel_options)

    def generate(
        self,
        request: BuildRequest,
        *,
        options: SpecOptions | None = None,
        timeout: float | None = None,
    ) -> SpecJSON:
        """Return the spec of one build.

        Args:
            request: what to build.
            options: what overrides the server's own options, for this call.
            timeout: in seconds, instead of the client's.

        Raises:
            SpecgenError: one of its subclasses.
        """
        metadata: tuple[tuple[str, str], ...] = ()
        if options is not None:
            message = json_format.MessageToJson(
                options, indent=None, preserving_proto_field_name=True
            )
            metadata = (("specgen-options", message),)
        try:
            return self._stub.GenerateSpec(
                request, timeout=timeout or self._timeout, metadata=metadata
            )
        except grpc.RpcError as error:
            raise _error_of_call(error) from error

    def generate_many(
        self,
        requests: Iterable[BuildRequest],
        *,
        options: SpecOptions | None = None,
        timeout: float | None = None,
        chunk: int = _CHUNK,
    ) -> Iterator[SpecJSON | SpecgenError]:
        """Yield the specs of many builds, in order, over one call.

        It takes requests, ``chunk`` at a time, as it goes; so they may be endless. A build
        without a spec yields its error, which is not raised, and the others go on. Without
        a timeout, in seconds, it takes as long as it takes.

        Raises:
            SpecgenError: the call as a whole failed.
        """
        taken = _Chunks(requests, options, chunk)
        responses = self._stub.GenerateSpecs(taken, timeout=timeout)
        try:
            for response in responses:
                for result in response.results:
                    yield result.spec if result.HasField("spec") else _error_of_build(result.error)
        except grpc.RpcError as error:
            if taken.failure:
                raise taken.failure from None  # gRPC would only say that there was one
            raise _error_of_call(error) from error
        finally:
            responses.cancel()

    def is_serving(self, *, timeout: float | None = None) -> bool:
        """Return whether the server says that it takes calls (grpc.health.v1).

        Raises:
            SpecgenError: it cannot be asked.
        """
        request = HealthCheckRequest(service=_SERVICE)
        # not over the channel that follows health: that one leaves a server that stops
        with self._connect() as channel:
            try:
                response = HealthStub(channel).Check(  # type: ignore[attr-defined]
                    request, timeout=timeout or self._timeout
                )
            except grpc.RpcError as error:
                raise _error_of_call(error) from error
        return bool(response.status == HealthCheckResponse.SERVING)

    def close(self) -> None:
        """End the connection, and the calls on it."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Chunks:
    """The messages of a bulk call; ``failure`` is what ended the caller's own iterable."""

    def __init__(
        self, requests: Iterable[BuildRequest], options: SpecOptions | None, size: int
    ) -> None:
        self._requests = iter(requests)
        self._options = options
        self._size = size
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[GenerateSpecsRequest]:
        return self

    def __next__(self) -> GenerateSpecsRequest:
        chunk = GenerateSpecsRequest(options=self._options)
        size = 0
        try:
            for request in islice(self._requests, self._size):
                chunk.requests.append(request)
                size += request.ByteSize()
                if size > _CHUNK_BYTES:
                    break
        except Exception as error:
            self.failure = error
            raise
        if not chunk.requests:
            raise StopIteration
        return chunk


def _error_of_build(error: SpecError) -> SpecgenError:
    code = _CODES.get(error.code, grpc.StatusCode.UNKNOWN)
    return _ERRORS.get(code, CallFailed)(code, error.message, error.violations)


def _error_of_call(error: grpc.RpcError) -> SpecgenError:
    code: grpc.StatusCode = error.code()
    violations = []
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it is a grpc.Call too
    except ValueError:
        status = None  # trailers too large: gRPC put another status in the place of this one
    for detail in status.details if status else ():
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            violations += [
                FieldViolation(field=v.field, description=v.description)
                for v in bad_request.field_violations
            ]
    return _ERRORS.get(code, CallFailed)(code, error.details() or "", violations)
