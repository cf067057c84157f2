"""OpenTelemetry tracing, where its packages are installed and the environment asks for it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import grpc

from ..rpc.service import SERVICE_NAME

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

__all__ = ["CallTracer", "call_tracer"]

logger = logging.getLogger(__name__)

_MOST_TO_FLUSH = 2000  # milliseconds


def call_tracer() -> CallTracer | None:
    """Return what traces calls, or None.

    It is on with the ``otel`` extra and OTEL_EXPORTER_OTLP_ENDPOINT (or the variable for
    traces alone) set, and off with OTEL_SDK_DISABLED=true or OTEL_TRACES_EXPORTER=none; the
    other OTEL_* variables mean what they mean everywhere.
    """
    wanted = any(
        os.environ.get(name)
        for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    )
    off = (
        os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
        or os.environ.get("OTEL_TRACES_EXPORTER", "").lower() == "none"
    )
    if not wanted or off:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME as NAME
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        logger.warning("no tracing: install tvix-specgen[otel] (%s)", error)
        return None
    name = os.environ.get("OTEL_SERVICE_NAME", "specgen-server")
    try:  # what the variables say may be unusable
        import opentelemetry.propagate  # noqa: F401

        provider = TracerProvider(resource=Resource.create({NAME: name}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except Exception as error:
        logger.warning("no tracing: %s", error)
        return None
    return CallTracer(provider)


class CallTracer:
    """A span for each call, as OpenTelemetry's conventions for gRPC have it.

    Not opentelemetry-instrumentation-grpc: it wraps the methods in an interceptor, and what
    gRPC looks for on them, such as their thread pool, is lost.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("specgen_server")

    def flush(self) -> None:
        """Send the spans of the last seconds, for two seconds at most."""
        self._provider.force_flush(_MOST_TO_FLUSH)

    def begin(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Span:
        """Begin the span of a call, below the caller's own if its metadata has one."""
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        return self._tracer.start_span(
            f"{SERVICE_NAME}/{method}",
            context=extract(carrier),
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": SERVICE_NAME, "rpc.method": method},
        )

    def end(self, span: Span, code: grpc.StatusCode, request_id: str) -> None:
        """End it."""
        from opentelemetry.trace import StatusCode

        span.set_attribute("rpc.grpc.status_code", code.value[0])
        span.set_attribute("specgen.request_id", request_id)
        if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
            span.set_status(StatusCode.ERROR)
        span.end()
