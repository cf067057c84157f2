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
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_status import rpc_status

from specgen.v1.specgen_pb2 import (
    FieldViolation,
    SpecError,
    SpecJSON,
    SpecOptions,
)
from specgen.v1.specgen_pb2_grpc import SpecServiceStub
from tvix.build.protos.build_pb2 import BuildRequest

from .attempts import Attempts
from .chunks import Chunks

T = TypeVar("T")


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
_SERVICE = "specgen.v1.SpecService"

_LOOPBACK = re.compile(
    r"(dns:(//[^/]*/)?)?(localhost|[^:/\[\]]+\.localhost|127(\.[0-9]+){1,3}|\[::1\])(:[0-9]+)?"
    r"|ipv4:127\..*|ipv6:(\[::1\]|%5B::1%5D).*",
    re.IGNORECASE,
)


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
        self._closed = False
        # a server that is about to stop says so in its health, before it refuses any call
        self._channel = self._connect(
            proxy=not _LOOPBACK.fullmatch(target), healthCheckConfig={"serviceName": _SERVICE}
        )
        self._stub = SpecServiceStub(self._channel)

    def _connect(self, *, proxy: bool, **service_config: object) -> grpc.Channel:
        service_config |= {
            "loadBalancingConfig": [{"round_robin": {}}],
            "methodConfig": [
                {
                    "name": [{"service": _SERVICE}, {"service": "grpc.health.v1.Health"}],
                    "waitForReady": self._wait_for_ready,
                }
            ],
        }
        channel_options = [
            ("grpc.service_config", json.dumps(service_config)),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            # gRPC's channels to one server would share a connection, and those that follow its
            # health then race when it is lost: grpcio 1.85 crashed there
            ("grpc.use_local_subchannel_pool", 1),
            # a server that restarts is back in less than a second
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 5_000),
            # a refusal may come with many details
            ("grpc.max_metadata_size", 16 * 1024),
            ("grpc.absolute_max_metadata_size", 64 * 1024),
            ("grpc.enable_http_proxy", int(proxy)),
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

        def call(timeout: float | None) -> SpecJSON:
            return self._stub.GenerateSpec(request, timeout=timeout, metadata=metadata)

        return self._answer(call, timeout)

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
        a timeout, in seconds, it takes as long as it takes. When the connection ends on the
        way, as a server's --max-connection-age has it, another call goes on from the first
        request without an answer; so those sent and not yet answered are kept until then.

        Raises:
            SpecgenError: the call as a whole failed.
        """
        sent = Chunks(requests, options, chunk)
        attempts = Attempts(timeout)
        while True:
            responses = self._stub.GenerateSpecs(
                sent.from_the_first_unanswered(), timeout=attempts.time_left()
            )
            try:
                for response in responses:
                    sent.answered()
                    attempts.had_an_answer()
                    for result in response.results:
                        yield (
                            result.spec
                            if result.HasField("spec")
                            else _error_of_build(result.error)
                        )
                return
            except grpc.RpcError as error:
                if sent.failure:
                    raise sent.failure from None  # gRPC would only say that there was one
                if self._closed or not attempts.may_go_on_after(error):
                    raise _error_of_call(error, attempts.code_of(error)) from error
            finally:
                responses.cancel()

    def is_serving(self, *, timeout: float | None = None) -> bool:
        """Return whether the server says that it takes calls (grpc.health.v1).

        Raises:
            SpecgenError: it cannot be asked.
        """
        request = HealthCheckRequest(service=_SERVICE)

        # not over the channel that follows health: that one leaves a server that stops
        with self._connect(proxy=False) as channel:
            stub = HealthStub(channel)

            def call(timeout: float | None) -> HealthCheckResponse:
                return stub.Check(request, timeout=timeout)  # type: ignore[attr-defined,no-any-return]

            response = self._answer(call, timeout)
        return bool(response.status == HealthCheckResponse.SERVING)

    def _answer(self, call: Callable[[float | None], T], timeout: float | None) -> T:
        attempts = Attempts(self._timeout if timeout is None else timeout)
        while True:
            try:
                return call(attempts.time_left())
            except grpc.RpcError as error:
                if self._closed or not attempts.may_go_on_after(error):
                    raise _error_of_call(error, attempts.code_of(error)) from error

    def close(self) -> None:
        """End the connection, and the calls on it."""
        self._closed = True
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


def _error_of_build(error: SpecError) -> SpecgenError:
    code = _CODES.get(error.code, grpc.StatusCode.UNKNOWN)
    return _ERRORS.get(code, CallFailed)(code, error.message, error.violations)


def _error_of_call(error: grpc.RpcError, code: grpc.StatusCode) -> SpecgenError:
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
