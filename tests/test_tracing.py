"""OpenTelemetry: a span a call, where the environment asks for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from support import RunningServer, build_request, running_server
from test_workers import wait_until

from specgen_client import SpecClient


class Collector(ThreadingHTTPServer):
    """Takes spans as OTLP over HTTP."""

    spans: list[str]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        import gzip

        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        export = ExportTraceServiceRequest.FromString(body)
        self.server.spans += [
            span.name
            for resource in export.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector(("127.0.0.1", 0), Handler) as server:
        server.spans = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


Traced = Callable[..., AbstractContextManager[tuple[RunningServer, SpecClient]]]


@pytest.fixture
def traced(tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Traced:
    """Runs a server that is to send spans to the collector, under these variables."""

    @contextmanager
    def run(**environment: str) -> Iterator[tuple[RunningServer, SpecClient]]:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with (
            running_server("127.0.0.1:0", tmp_path / "log", "--workers", "1") as server,
            SpecClient(server.address) as client,
        ):
            yield server, client

    return run


def test_each_call_is_a_span(collector: Collector, traced: Traced) -> None:
    with traced(OTEL_BSP_SCHEDULE_DELAY="200") as (_, client):
        client.generate(build_request())
        list(client.generate_many([build_request()]))
        wait_until(lambda: len(collector.spans) >= 2, "two spans")
    assert "specgen.v1.SpecService/GenerateSpec" in {name.lstrip("/") for name in collector.spans}


def test_nothing_is_sent_where_it_is_switched_off(collector: Collector, traced: Traced) -> None:
    with traced(OTEL_SDK_DISABLED="true", OTEL_BSP_SCHEDULE_DELAY="100") as (_, client):
        client.generate(build_request())
        threading.Event().wait(0.5)
    assert collector.spans == []


def test_the_spans_of_the_last_seconds_are_sent(collector: Collector, traced: Traced) -> None:
    with traced(OTEL_BSP_SCHEDULE_DELAY="60000") as (_, client):
        client.generate(build_request())
        assert collector.spans == []
    assert len(collector.spans) == 1


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_PROPAGATORS", "nonesuch"), ("OTEL_BSP_MAX_QUEUE_SIZE", "10")]
)
def test_variables_that_cannot_be_used(name: str, value: str, traced: Traced) -> None:
    with traced(**{name: value}) as (server, client):
        assert client.generate(build_request()).json
        assert "warning: no tracing: " in server.log.read_text()
