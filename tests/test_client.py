"""SpecClient against real servers, and against some that misbehave."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from support import (
    RunningServer,
    build_request,
    bulk_cases,
    file,
    golden_case,
    large_request,
    running_server,
)

from specgen.v1.specgen_pb2 import IdMapping, SpecJSON, SpecOptions
from specgen_client import (
    CallFailed,
    DeadlineExceeded,
    RequestRefused,
    ServerUnavailable,
    SpecClient,
    SpecgenError,
)
from specgen_core import IdMapping as OwnIdMapping
from specgen_core import SpecOptions as OwnSpecOptions
from specgen_core.answer import generate
from tvix.build.protos.build_pb2 import BuildRequest

SECONDS = 20.0


@pytest.fixture
def client(server: RunningServer) -> Iterator[SpecClient]:
    with SpecClient(server.address, timeout=SECONDS) as client:
        yield client


Handler = Callable[[BuildRequest, grpc.ServicerContext], SpecJSON]


class FakeServers:
    """Starts servers whose GenerateSpec is one's own, and stops them."""

    def __init__(self) -> None:
        self._servers: list[grpc.Server] = []
        self._pool = ThreadPoolExecutor(4)

    def start(self, handler: Handler, address: str = "127.0.0.1:0") -> str:
        server = grpc.server(self._pool, options=[("grpc.so_reuseport", 0)])
        method = grpc.unary_unary_rpc_method_handler(
            handler,
            request_deserializer=BuildRequest.FromString,
            response_serializer=SpecJSON.SerializeToString,
        )
        service = grpc.method_handlers_generic_handler(
            "specgen.v1.SpecService", {"GenerateSpec": method}
        )
        server.add_generic_rpc_handlers((service,))
        port = server.add_insecure_port(address)
        server.start()
        self._servers.append(server)
        return f"127.0.0.1:{port}"

    def stop(self) -> None:
        for server in self._servers:
            server.stop(0).wait(SECONDS)
        self._pool.shutdown()


@pytest.fixture
def fake_servers() -> Iterator[FakeServers]:
    servers = FakeServers()
    yield servers
    servers.stop()


@pytest.fixture
def silent_address() -> Iterator[str]:
    """Return the address of something that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


# --- generate -------------------------------------------------------------------------


def test_generate(client: SpecClient) -> None:
    request = golden_case("real_ogre-1.9.0").request

    assert client.generate(request) == generate(request, OwnSpecOptions())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param(SpecOptions(), OwnSpecOptions(), id="none"),
        pytest.param(SpecOptions(rootless=False), OwnSpecOptions(rootless=False), id="rootful"),
        pytest.param(
            SpecOptions(terminal=False, cgroup_namespace=False, sandbox_shell="/bin/büsh\n"),
            OwnSpecOptions(terminal=False, cgroup_namespace=False, sandbox_shell="/bin/büsh\n"),
            id="beyond_ascii",
        ),
        pytest.param(
            SpecOptions(uid_mappings=[IdMapping(container_id=0, host_id=2**32 - 2, size=1)]),
            OwnSpecOptions(uid_mappings=(OwnIdMapping(0, 2**32 - 2, 1),)),
            id="mappings",
        ),
    ],
)
def test_options_of_a_call(
    client: SpecClient, options: SpecOptions, expected: OwnSpecOptions
) -> None:
    request = golden_case("bin_sh").request

    assert client.generate(request, options=options) == generate(request, expected)
    [of_many] = client.generate_many([request], options=options)
    assert of_many == generate(request, expected)


def test_refused(client: SpecClient) -> None:
    with pytest.raises(RequestRefused) as refused:
        client.generate(build_request(command_args=[], outputs=["a"]))

    error = refused.value
    assert isinstance(error, SpecgenError)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details == (
        "2 violations, the first: command_args: must name the command to run, is empty"
    )
    assert str(error) == f"INVALID_ARGUMENT: {error.details}"
    assert [(v.field, v.description) for v in error.violations] == [
        ("command_args", "must name the command to run, is empty"),
        ("outputs[0]", 'must lie at or under a scratch path, "a" does not'),
    ]


def test_options_refused(client: SpecClient) -> None:
    with pytest.raises(RequestRefused) as refused:
        client.generate(build_request(), options=SpecOptions(sandbox_shell=""))

    assert [v.field for v in refused.value.violations] == ["options.sandbox_shell"]


def test_large(client: SpecClient) -> None:
    request = large_request()

    assert client.generate(request).ByteSize() > 4 * 1024 * 1024
    [of_many] = client.generate_many([request])
    assert isinstance(of_many, SpecJSON)


def test_unix_socket(unix_server: RunningServer) -> None:
    with SpecClient(unix_server.address, timeout=SECONDS) as client:
        assert client.generate(build_request()) == generate(build_request(), OwnSpecOptions())


def test_threads_share_a_client(client: SpecClient) -> None:
    requests = [BuildRequest.FromString(case.request) for case in bulk_cases()[:32]]

    with ThreadPoolExecutor(4) as threads:
        specs = list(threads.map(client.generate, requests))

    assert specs == [generate(request, OwnSpecOptions()) for request in requests]


# --- generate_many --------------------------------------------------------------------


def cwd_or_code(result: SpecJSON | SpecgenError) -> str:
    if isinstance(result, SpecgenError):
        return result.code.name
    return str(json.loads(result.json)["process"]["cwd"])


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_many_in_order_with_errors_in_their_place(client: SpecClient, chunk: int) -> None:
    directories = [f"{i}/" if i % 5 == 3 else f"{i}" for i in range(100)]

    results = list(
        client.generate_many((build_request(working_dir=d) for d in directories), chunk=chunk)
    )

    assert list(map(cwd_or_code, results)) == [
        "INVALID_ARGUMENT" if d.endswith("/") else f"/{d}" for d in directories
    ]
    refused = results[3]
    assert isinstance(refused, RequestRefused)
    assert [(v.field, v.description) for v in refused.violations] == [
        ("working_dir", 'must not have a doubled or trailing slash, is "3/"')
    ]


def test_many_of_none(client: SpecClient) -> None:
    assert list(client.generate_many([])) == []


def test_many_takes_requests_as_it_goes(client: SpecClient) -> None:
    """Of endless requests, only as many are taken ahead as gRPC's windows hold."""
    taken = itertools.count()
    latest = 0

    def endless() -> Iterator[BuildRequest]:
        nonlocal latest
        for latest in taken:  # noqa: B007
            yield build_request(environment_vars=[{"key": "a", "value": b"x" * 4000}])

    def when_it_stands_still() -> int:
        before = -1
        while before != latest:
            before = latest
            time.sleep(0.3)
        return latest

    results = client.generate_many(endless(), timeout=60)
    assert len(list(itertools.islice(results, 10))) == 10
    after_10 = when_it_stands_still()
    assert after_10 < 20_000
    assert len(list(itertools.islice(results, 2000))) == 2000
    assert after_10 < when_it_stands_still() < after_10 + 20_000
    results.close()
    after_close = when_it_stands_still()
    time.sleep(0.1)
    assert latest == after_close


def test_many_answers_before_it_asks_for_more(client: SpecClient) -> None:
    """Someone who sends the next request by the last answer gets each of them."""
    answered = threading.Semaphore(0)

    def one_by_one() -> Iterator[BuildRequest]:
        for i in range(3):
            yield build_request(working_dir=f"{i}")
            assert answered.acquire(timeout=SECONDS)

    seen = []
    for result in client.generate_many(one_by_one(), chunk=1):
        seen.append(cwd_or_code(result))
        answered.release()

    assert seen == ["/0", "/1", "/2"]


def test_many_fails_as_its_requests_fail(client: SpecClient) -> None:
    def failing() -> Iterator[BuildRequest]:
        yield build_request()
        raise KeyError("of the caller")

    with pytest.raises(KeyError, match="of the caller"):
        list(client.generate_many(failing(), chunk=1))


def test_many_with_options_that_cannot_be(client: SpecClient) -> None:
    (refused,) = client.generate_many([build_request()], options=SpecOptions(sandbox_shell=""))

    assert isinstance(refused, RequestRefused)
    assert [v.field for v in refused.violations] == ["options.sandbox_shell"]


def test_many_large_ones(client: SpecClient) -> None:
    """Together in one message they would be more than a message may be."""
    large = build_request(inputs=[file(f"{i:05}-" + "n" * 200) for i in range(6000)])

    answers = list(client.generate_many([large] * 40))

    assert len(answers) == 40
    assert all(isinstance(answer, SpecJSON) for answer in answers)


# --- servers that are not there, or do not answer -------------------------------------


def unused_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"127.0.0.1:{taken.getsockname()[1]}"


def test_no_server() -> None:
    with (
        SpecClient(unused_address(), timeout=SECONDS) as client,
        pytest.raises(ServerUnavailable) as failed,
    ):
        client.generate(build_request())

    assert failed.value.code is grpc.StatusCode.UNAVAILABLE
    assert "Connection refused" in failed.value.details


def test_many_without_a_server() -> None:
    with (
        SpecClient(unused_address(), timeout=SECONDS) as client,
        pytest.raises(ServerUnavailable),
    ):
        list(client.generate_many([build_request()]))


def test_no_unix_socket(tmp_path: Path) -> None:
    with (
        SpecClient(f"unix://{tmp_path}/none.sock", timeout=SECONDS) as client,
        pytest.raises(ServerUnavailable),
    ):
        client.generate(build_request())


def test_silent_server(silent_address: str) -> None:
    with SpecClient(silent_address, timeout=0.3) as client:
        with pytest.raises(DeadlineExceeded) as failed:
            client.generate(build_request())
        assert failed.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        with pytest.raises(DeadlineExceeded):
            list(client.generate_many([build_request()], timeout=0.3))


def test_slow_server(fake_servers: FakeServers) -> None:
    """The deadline of a call goes before the client's own."""
    asked, done = threading.Event(), threading.Event()

    def slow(_request: BuildRequest, _context: grpc.ServicerContext) -> SpecJSON:
        asked.set()
        done.wait(SECONDS)
        return SpecJSON()

    with (
        SpecClient(fake_servers.start(slow), timeout=SECONDS) as client,
        pytest.raises(DeadlineExceeded),
    ):
        client.generate(build_request(), timeout=0.3)

    assert asked.is_set()
    done.set()


def test_wait_for_ready(tmp_path: Path) -> None:
    """A client may be there before its server."""
    address = f"unix://{tmp_path}/specgen.sock"
    with (
        SpecClient(address, timeout=SECONDS, wait_for_ready=True) as client,
        ThreadPoolExecutor(1) as thread,
    ):
        answer = thread.submit(client.generate, build_request())
        time.sleep(0.3)
        with running_server(address, tmp_path / "log"):
            assert answer.result(SECONDS) == generate(build_request(), OwnSpecOptions())


def aborting(code: grpc.StatusCode, *, times: int) -> tuple[Handler, list[int]]:
    """Return a handler that fails so many times, and the calls that it had."""
    calls: list[int] = []

    def handler(_request: BuildRequest, context: grpc.ServicerContext) -> SpecJSON:
        calls.append(len(calls))
        if len(calls) <= times:
            context.abort(code, "not now")
        return SpecJSON(json="{}")

    return handler, calls


def test_unavailable_is_tried_again(fake_servers: FakeServers) -> None:
    handler, calls = aborting(grpc.StatusCode.UNAVAILABLE, times=2)

    with SpecClient(fake_servers.start(handler), timeout=SECONDS) as client:
        assert client.generate(build_request()) == SpecJSON(json="{}")

    assert len(calls) == 3


def test_not_for_ever(fake_servers: FakeServers) -> None:
    handler, calls = aborting(grpc.StatusCode.UNAVAILABLE, times=99)

    with (
        SpecClient(fake_servers.start(handler), timeout=SECONDS) as client,
        pytest.raises(ServerUnavailable),
    ):
        client.generate(build_request())

    assert len(calls) == 5


@pytest.mark.parametrize(
    ("code", "error"),
    [
        pytest.param(grpc.StatusCode.INVALID_ARGUMENT, RequestRefused, id="invalid"),
        pytest.param(grpc.StatusCode.PERMISSION_DENIED, RequestRefused, id="denied"),
        pytest.param(grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded, id="deadline"),
        pytest.param(grpc.StatusCode.INTERNAL, CallFailed, id="internal"),
        pytest.param(grpc.StatusCode.RESOURCE_EXHAUSTED, CallFailed, id="exhausted"),
        pytest.param(grpc.StatusCode.UNKNOWN, CallFailed, id="unknown"),
    ],
)
def test_status(fake_servers: FakeServers, code: grpc.StatusCode, error: Any) -> None:
    handler, calls = aborting(code, times=99)

    with (
        SpecClient(fake_servers.start(handler), timeout=SECONDS) as client,
        pytest.raises(error) as failed,
    ):
        client.generate(build_request())

    assert (failed.value.code, failed.value.details) == (code, "not now")
    assert (type(failed.value), failed.value.violations) == (error, [])
    assert len(calls) == 1


def test_server_without_the_bulk_call(fake_servers: FakeServers) -> None:
    handler, _ = aborting(grpc.StatusCode.OK, times=0)

    with (
        SpecClient(fake_servers.start(handler), timeout=SECONDS) as client,
        pytest.raises(CallFailed) as failed,
    ):
        list(client.generate_many([build_request()]))

    assert failed.value.code is grpc.StatusCode.UNIMPLEMENTED
