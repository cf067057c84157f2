"""OpenTelemetry tracing, where its packages are installed and the environment asks for it."""

from __future__ import annotations

import logging
import os

import grpc

__all__ = ["tracing_interceptors"]

logger = logging.getLogger(__name__)


def tracing_interceptors() -> list[grpc.ServerInterceptor]:
    """Return what traces each call, or nothing.

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
        return []
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.grpc import server_interceptor
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        logger.warning("no tracing: install tvix-specgen[otel] (%s)", error)
        return []
    name = os.environ.get("OTEL_SERVICE_NAME", "specgen-server")
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return [server_interceptor(tracer_provider=provider)]  # type: ignore[no-untyped-call]
