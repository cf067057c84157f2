"""SpecClient against real servers, and against some that misbehave."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import subprocess
import sys
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
from test_workers import wait_until

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


def test_each_client_has_its_own_connection() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        ThreadPoolExecutor(2) as threads,
        SpecClient(f"127.0.0.1:{listener.getsockname()[1]}", timeout=SECONDS) as one,
        SpecClient(f"127.0.0.1:{listener.getsockname()[1]}", timeout=SECONDS) as other,
    ):
        calls = [threads.submit(client.generate, build_request()) for client in (one, other)]
        listener.settimeout(SECONDS / 2)
        with listener.accept()[0], listener.accept()[0]:
            one.close()
            other.close()
        assert all(isinstance(call.exception(), SpecgenError) for call in calls)


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


# --- connections that end on the way ---------------------------------------------------


class CuttingProxy:
    """Passes bytes on to a server, and cuts connections after so many from it."""

    def __init__(self, server: str, *cuts: int | None) -> None:
        """``cuts`` has a number for each connection; the last one holds for all later ones."""
        host, _, port = server.rpartition(":")
        self._server = (host, int(port))
        self._cuts = cuts
        self.connections = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                cut = self._cuts[min(self.connections, len(self._cuts) - 1)]
                self.connections += 1
                threading.Thread(target=self._serve, args=(client, cut)).start()

    def _serve(self, client: socket.socket, cut: int | None) -> None:
        with client, socket.create_connection(self._server) as server:
            back = threading.Thread(target=self._pass_on, args=(server, client, cut))
            back.start()
            self._pass_on(client, server, None)
            back.join()

    @staticmethod
    def _pass_on(one: socket.socket, other: socket.socket, cut: int | None) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while (data := one.recv(4096)) and (cut is None or passed < cut):
                other.sendall(data)
                passed += len(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@contextlib.contextmanager
def cutting(server: RunningServer, *cuts: int | None) -> Iterator[tuple[SpecClient, CuttingProxy]]:
    proxy = CuttingProxy(server.address, *cuts)
    with contextlib.closing(proxy), SpecClient(proxy.address, timeout=SECONDS) as client:
        yield client, proxy


def test_an_answer_that_is_cut_is_asked_for_again(server: RunningServer) -> None:
    request = large_request()
    with cutting(server, 2_000_000, 3_000_000, None) as (client, proxy):
        assert client.generate(request) == generate(request, OwnSpecOptions())
        assert proxy.connections >= 3


def test_an_answer_that_is_always_cut(server: RunningServer) -> None:
    with cutting(server, 1_000_000) as (client, proxy):
        with pytest.raises(ServerUnavailable):
            client.generate(large_request())
        assert 6 <= proxy.connections <= 10


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_many_go_on_from_the_first_without_an_answer(server: RunningServer, chunk: int) -> None:
    directories = [f"{i}" for i in range(400)]
    with cutting(server, 300_000) as (client, proxy):
        results = list(
            client.generate_many((build_request(working_dir=d) for d in directories), chunk=chunk)
        )
        assert proxy.connections > 3
    assert list(map(cwd_or_code, results)) == [f"/{d}" for d in directories]


def test_many_one_by_one_go_on_too(server: RunningServer) -> None:
    """The next request waits for an answer that has to be asked for again."""
    answered = threading.Semaphore(0)

    def one_by_one() -> Iterator[BuildRequest]:
        for i in range(60):
            yield build_request(working_dir=f"{i}")
            assert answered.acquire(timeout=SECONDS)

    seen = []
    with cutting(server, 30_000) as (client, proxy):
        for result in client.generate_many(one_by_one(), chunk=1):
            seen.append(cwd_or_code(result))
            answered.release()
        assert proxy.connections > 4
    assert seen == [f"/{i}" for i in range(60)]


def test_many_do_not_go_on_for_ever(server: RunningServer) -> None:
    with cutting(server, 500_000, 500) as (client, proxy):
        results = client.generate_many([build_request()] * 1000, chunk=8)
        with pytest.raises(ServerUnavailable):
            for _ in results:
                pass
        assert 6 <= proxy.connections <= 10  # gRPC itself may connect anew, too


def test_many_go_on_within_their_timeout(server: RunningServer) -> None:
    def slow() -> Iterator[BuildRequest]:
        for _ in range(1000):
            yield build_request()
            time.sleep(0.05)

    began = time.monotonic()
    with cutting(server, 20_000) as (client, proxy):
        with pytest.raises((DeadlineExceeded, ServerUnavailable)):
            list(client.generate_many(slow(), chunk=1, timeout=2))
        assert proxy.connections > 1
    assert time.monotonic() - began < 10


def test_many_outlive_the_age_of_a_connection(tmp_path: Path) -> None:
    def slow() -> Iterator[BuildRequest]:
        for i in range(40):
            yield build_request(working_dir=f"{i}")
            time.sleep(0.1)

    flags = ("--workers", "1", "--max-connection-age", "1", "--grace", "0.2")
    with (
        running_server("127.0.0.1:0", tmp_path / "log", *flags) as server,
        SpecClient(server.address) as client,
    ):
        results = [cwd_or_code(result) for result in client.generate_many(slow(), chunk=1)]
        # one line for each call that it took
        wait_until(lambda: server.log.read_text().count(" GenerateSpecs ") > 2, "several calls")
    assert results == [f"/{i}" for i in range(40)]


# --- proxies --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:{port}",
        "localhost:{port}",
        "LocalHost:{port}",
        "ipv4:127.0.0.1:{port}",
        "dns:///127.0.0.1:{port}",
        "dns:localhost:{port}",
    ],
)
def test_loopback_is_reached_without_a_proxy(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    proxies(monkeypatch, unused_address())
    port = server.address.rpartition(":")[2]
    with SpecClient(target.format(port=port), timeout=SECONDS) as client:
        assert client.generate(build_request()).json
        assert client.is_serving()


def proxies(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://{address}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("no_grpc_proxy", raising=False)


@pytest.mark.parametrize("host", ["[::1]", "unix"])
def test_nor_other_ways_into_this_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    proxies(monkeypatch, unused_address())
    address = f"unix://{tmp_path}/specgen.sock" if host == "unix" else f"{host}:0"
    with (
        running_server(address, tmp_path / "log", "--workers", "1") as server,
        SpecClient(server.address, timeout=SECONDS) as client,
    ):
        assert client.generate(build_request()).json


def test_specgen_health_goes_through_no_proxy(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxies(monkeypatch, unused_address())
    done = subprocess.run(
        [Path(sys.executable).with_name("specgen"), "health", "--server", server.address],
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.returncode) == ("SERVING\n", 0)


def test_other_hosts_are_reached_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy, ThreadPoolExecutor(1) as thread:
        proxy.settimeout(SECONDS)
        proxies(monkeypatch, f"127.0.0.1:{proxy.getsockname()[1]}")
        with SpecClient("specgen.example:50051", timeout=2) as client:
            failed = thread.submit(client.generate, build_request())
            connection, _ = proxy.accept()
            with connection:
                assert connection.recv(1000).startswith(b"CONNECT specgen.example:50051 HTTP/1.1")
            assert isinstance(failed.exception(SECONDS), SpecgenError)


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


def test_a_server_that_sees_first_that_the_time_is_over(fake_servers: FakeServers) -> None:
    """Ours ends the call as CANCELLED then: nobody should wait any more."""

    def cancels_just_before(_: BuildRequest, context: grpc.ServicerContext) -> SpecJSON:
        time.sleep(max(0.0, context.time_remaining() - 0.03))
        context.abort(grpc.StatusCode.CANCELLED, "its deadline is over")
        return SpecJSON()

    with (
        SpecClient(fake_servers.start(cancels_just_before), timeout=SECONDS) as client,
        pytest.raises(DeadlineExceeded),
    ):
        client.generate(build_request(), timeout=0.5)


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

    assert len(calls) == 6


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
