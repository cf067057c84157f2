"""The call lane: what it leans on, its limits, and whose work it does not do."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from raw_http2 import connected
from support import build_request, running_server
from test_service import UNARY, Answer, Socket, ended, own_server
from test_workers import wait_until

import specgen_server.rpc.service
from specgen.v1.specgen_pb2 import GenerateSpecsRequest, SpecJSON
from specgen.v1.specgen_pb2_grpc import SpecServiceStub
from specgen_core import Request, SpecOptions
from specgen_core.answer import answer_bytes
from specgen_server.rpc.call_lane import calls as lane_calls
from specgen_server.rpc.call_lane import core, lane, missing
from specgen_server.rpc.public_way import Threads
from specgen_server.telemetry.stats import CallRecord
from tvix.build.protos.build_pb2 import BuildRequest

LANE = "--call-lane"
BOTH = pytest.mark.parametrize("way", [LANE, "--no-call-lane"], ids=["lane", "public"])
SECONDS = 20.0
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


def large() -> BuildRequest:
    """Return a request that the lane leaves to a helper."""
    return build_request(additional_files=[{"path": "build/a", "contents": b"x" * 100_000}])


# --- what it leans on -----------------------------------------------------------------


def test_the_installed_grpcio_has_what_the_lane_needs() -> None:
    assert missing() == [], f"grpcio {grpc.__version__} has changed"


@pytest.mark.parametrize(
    ("name", "now", "lacks"),
    [
        pytest.param("auth_context", None, "cygrpc.auth_context", id="function"),
        pytest.param("Call", type("Call", (), {}), "cygrpc.Call.start_server_batch", id="method"),
        pytest.param("Call", None, "cygrpc.Call.peer", id="class"),
        pytest.param(
            "auth_context", lambda call, more: None, "cygrpc.auth_context", id="parameters"
        ),
        pytest.param(
            "ReceiveMessageOperation",
            type("ReceiveMessageOperation", (), {"message": lambda self: None}),
            "an object of cygrpc (ReceiveMessageOperation() takes no arguments)",
            id="operation",
        ),
    ],
)
def test_what_is_missing_is_named(
    name: str, now: object, lacks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core.cygrpc, name, now)
    assert lacks in missing()


def test_without_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "cygrpc", None)
    assert "cygrpc.Server.register_method" in missing()


def test_where_something_is_missing_calls_come_in_the_public_way(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(core, "_NEEDED", {"Call.fly": None})
    with caplog.at_level(logging.INFO), own_server(LANE) as (channel, server):
        assert not server.on_lane
        assert Socket(channel).unary(build_request()).code is grpc.StatusCode.OK
    assert "grpcio lacks what the call lane needs: cygrpc.Call.fly" in caplog.text
    assert "calls come in by grpc.server()" in caplog.text


@BOTH
def test_the_log_says_which_way_it_is(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_server("127.0.0.1:0", tmp_path / "log", "--workers", "1", way) as server:
        said = "the call lane" if way == LANE else "grpc.server()"
        assert f"calls come in by {said}\n" in server.log.read_text()


@pytest.mark.parametrize(("given", "holds"), [(None, True), ("", False), ("tcp_rst", False)])
def test_the_poller_is_chosen_unless_the_operator_has(given: str | None, holds: bool) -> None:
    program = "import os, specgen_server.rpc; print(os.environ['GRPC_EXPERIMENTS'])"
    environment = {} if given is None else {"GRPC_EXPERIMENTS": given}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    chosen = "-event_engine_listener,-event_engine_client"
    assert run.stdout.strip() == (chosen if holds else given)


def test_nothing_of_grpc_runs_around_a_fork() -> None:
    """Python forks where it cannot start a process otherwise, and gRPC would hang or abort."""
    program = "import os, specgen_server.rpc; print(os.environ['GRPC_ENABLE_FORK_SUPPORT'])"
    for given in ({}, {"GRPC_ENABLE_FORK_SUPPORT": "1"}):
        run = subprocess.run(
            [sys.executable, "-c", program], env=given, capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == (given or {"": "0"}).popitem()[1]


# --- a server that works on what it is told to ------------------------------------------


class Slow:
    """Has the service wait for a sign before it answers a large request."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()
        self.answered = 0
        monkeypatch.setattr(specgen_server.rpc.service, "answer_bytes", self)

    def __call__(self, request: Request, options: SpecOptions) -> bytes:
        contents = sum(len(file.contents) for file in request.additional_files)
        if contents + sum(map(len, request.inputs)) + sum(map(len, request.command_args)) > 60_000:
            self.begun.release()
            assert self.go.wait(SECONDS)
            self.answered += 1
        return answer_bytes(request, options)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    slow = Slow(monkeypatch)
    yield slow
    slow.go.set()


@BOTH
def test_calls_at_work_beyond_the_limit_are_refused(
    way: str, slow: Slow, caplog: pytest.LogCaptureFixture
) -> None:
    with own_server(way, max_in_flight=3) as (channel, server):
        call = SpecServiceStub(channel).GenerateSpec
        calls = [call.future(large(), timeout=SECONDS) for _ in range(3)]
        wait_until(lambda: server.in_flight == 3, "three calls in flight")
        assert slow.begun.acquire(timeout=SECONDS)
        for _ in range(3):
            refused = Socket(channel).unary(large())
            assert (refused.code, refused.details) == (
                EXHAUSTED,
                "3 calls are in flight, which is this server's limit: try later",
            )
        if way == LANE:  # a small one takes no place
            assert Socket(channel).unary(build_request()).code is grpc.StatusCode.OK
        slow.go.set()
        assert {one.code() for one in calls} == {grpc.StatusCode.OK}
        assert Socket(channel).unary(large()).code is grpc.StatusCode.OK
    [line] = [record for record in caplog.records if "overload" in record.message]
    assert line.levelno == logging.WARNING
    assert line.message == "overload, 1 calls refused: " + refused.details


@BOTH
def test_streams_at_work_beyond_the_limit_are_refused(way: str, slow: Slow) -> None:
    bulk = GenerateSpecsRequest(requests=[large()])
    with own_server(way, max_streams=2) as (channel, server):
        call = SpecServiceStub(channel).GenerateSpecs
        streams = [call(iter([bulk]), timeout=SECONDS) for _ in range(2)]
        assert slow.begun.acquire(timeout=SECONDS)
        if way == LANE:
            wait_until(lambda: server._way.large.qsize() == 1, "the other one in the queue")
        else:
            assert slow.begun.acquire(timeout=SECONDS)
        refused = Socket(channel).bulk([bulk])
        assert (refused.code, refused.details) == (
            EXHAUSTED,
            "2 calls are in flight, which is this server's limit: try later",
        )
        slow.go.set()
        assert [len(list(stream)) for stream in streams] == [1, 1]


def test_a_large_call_in_the_queue_is_not_begun_for_one_who_left(slow: Slow) -> None:
    records: list[CallRecord] = []
    with own_server(LANE, records) as (channel, server):
        call = SpecServiceStub(channel).GenerateSpec
        first = [call.future(large(), timeout=SECONDS)]
        assert slow.begun.acquire(timeout=SECONDS)
        queued = [call.future(large(), timeout=SECONDS) for _ in range(3)]
        wait_until(lambda: server.in_flight == len(first) + 3, "all in flight")
        for one in queued:
            one.cancel()
        wait_until(lambda: sum(not call._stays for call in server._way.open) == 3, "they left")
        slow.go.set()
        assert {one.code() for one in first} == {grpc.StatusCode.OK}
        wait_until(lambda: len(records) == len(first) + 3, "all recorded")
    assert slow.answered == len(first)
    assert sorted(record.code for record in records) == ["CANCELLED"] * 3 + ["OK"] * len(first)


def test_a_call_after_its_deadline_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """However the core has not said yet that it is over."""
    records: list[CallRecord] = []
    monkeypatch.setattr(lane_calls, "time", lambda: 1e12)
    with own_server(LANE, records) as (channel, _):
        answer = Socket(channel).unary(build_request())
        wait_until(lambda: bool(records), "the record")
    assert (answer.code, answer.details) == (
        grpc.StatusCode.CANCELLED,
        "the caller is gone, or its deadline is over",
    )
    assert records[0].builds == 0


def test_small_calls_do_not_wait_for_large_ones(slow: Slow) -> None:
    with own_server(LANE) as (channel, _):
        call = SpecServiceStub(channel).GenerateSpec
        waiting = [call.future(large(), timeout=SECONDS) for _ in range(10)]
        assert slow.begun.acquire(timeout=SECONDS)
        for _ in range(20):
            assert Socket(channel).unary(build_request()).code is grpc.StatusCode.OK
        slow.go.set()
        assert {one.code() for one in waiting} == {grpc.StatusCode.OK}


class Told:
    """A call that says what it is told to do, and how long its answer takes."""

    def __init__(self, said: list[str], clock: list[float], name: str, seconds: float) -> None:
        self.said, self.clock, self.name, self.seconds = said, clock, name, seconds

    def answer(self, wire: bytes) -> bytes:
        self.clock[0] += self.seconds
        self.said.append(f"answer {self.name}")
        return wire

    def send(self, answer: bytes) -> None:
        self.said.append(f"send {self.name}{answer.decode()}")


def odd(size: int = 0) -> BuildRequest:
    """Return a request that is not routine."""
    return build_request(additional_files=[{"path": "build/a", "contents": b"x" * size}])


def many_paths() -> BuildRequest:
    """Return a small request that takes long: each of its paths is looked at by many rules."""
    return build_request(scratch_paths=[f"p{i:03}" for i in range(200)], outputs=[])


@pytest.mark.parametrize(
    ("bulk", "thread"),
    [
        pytest.param([odd()], "call-lane", id="odd"),
        pytest.param([many_paths()], "large", id="paths"),
        pytest.param([odd(20_000)], "large", id="bytes"),
        pytest.param([build_request(), many_paths()], "large", id="one_of_two"),
    ],
)
def test_what_takes_long_is_left_to_a_helper(
    bulk: list[BuildRequest], thread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small it is; and its builds are counted once."""
    threads = []

    def answered(request: Request, options: SpecOptions) -> bytes:
        threads.append(threading.current_thread().name)
        return answer_bytes(request, options)

    records: list[CallRecord] = []
    with own_server(LANE, records) as (channel, _):
        assert Socket(channel).unary(build_request()).code is grpc.StatusCode.OK  # now it is known
        monkeypatch.setattr(specgen_server.rpc.service, "answer_bytes", answered)
        assert Socket(channel).unary(bulk[-1]).code is grpc.StatusCode.OK
        answer = Socket(channel).bulk([GenerateSpecsRequest(requests=bulk)])
        assert [one.HasField("spec") for one in answer.responses[0].results] == [True] * len(bulk)
        wait_until(lambda: len(records) == 3, "all recorded")
    assert {*threads} == {thread}
    assert [record.builds for record in records] == [1, 1, len(bulk)]


def test_answers_made_together_are_sent_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """But none waits long for the others."""
    clock, said = [0.0], list[str]()
    monkeypatch.setattr(lane, "perf_counter", lambda: clock[0])
    some = lane.CallLane.__new__(lane.CallLane)
    some.gathered = deque()
    for name, seconds in (("a", 0.0009), ("b", 0.0009), ("c", 0.0009), ("d", 9.0), ("e", 0.0)):
        some.gathered.append((cast("lane_calls.Call", Told(said, clock, name, seconds)), b"!"))
    some._answer_gathered()
    assert said == [
        *("answer a", "answer b", "answer c", "send a!", "send b!", "send c!"),
        *("answer d", "send d!"),
        *("answer e", "send e!"),
    ]


def test_messages_do_not_wait_for_a_flood_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(lane, "perf_counter", lambda: clock[0])
    some = lane.CallLane.__new__(lane.CallLane)
    some.gathered = deque([(cast("lane_calls.Call", None), b"")])
    some._together = 2
    events = 0

    class Flood:
        def poll(self, deadline: float) -> Any:
            nonlocal events
            events += 1
            clock[0] += 0.0001
            return SimpleNamespace(tag=lambda _: None)

    some._queue = Flood()
    some._gather()
    assert 19 <= events <= 21


def test_the_more_came_together_the_longer_more_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each connection takes two looks; where calls come one by one, few are taken in vain."""
    monkeypatch.setattr(lane, "_LOOK_EVERY", 3)
    some = lane.CallLane.__new__(lane.CallLane)
    some._together, some._singly = 1, 2
    message = (cast("lane_calls.Call", None), b"")
    ready = looks = 0

    class Connections:
        def poll(self, deadline: float) -> Any:
            nonlocal looks, ready
            looks += 1
            if looks % 2 or not ready:
                return SimpleNamespace(tag=None)
            ready -= 1
            return SimpleNamespace(tag=lambda _: some.gathered.append(message))

    some._queue = Connections()
    seen = []
    for waiting in (9, 9, 9, 0, 0, 0, 0):
        some.gathered, ready, looks = deque([message]), waiting, 0
        some._gather()
        seen.append((len(some.gathered), looks))
    assert seen == [(2, 3), (3, 5), (4, 7), (1, 5), (1, 0), (1, 0), (1, 2)]


def test_after_an_answer_the_lane_stays_awake_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, deadlines = [0.0], list[float | None]()
    monkeypatch.setattr(lane, "perf_counter", lambda: clock[0])
    some = lane.CallLane.__new__(lane.CallLane)
    some._awake_until = lane._STAY_AWAKE

    class Silence:
        def poll(self, deadline: float | None = None) -> Any:
            deadlines.append(deadline)
            clock[0] += 0.00002
            return SimpleNamespace(tag=None)

    some._queue = Silence()
    some._next_event()
    assert deadlines == [0.0, 0.0, 0.0, None]


def test_a_stop_with_grace_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    never = threading.Event()
    with own_server(LANE) as (channel, server):
        stalled = channel.stream_unary(UNARY).future(_nothing_until(never), timeout=SECONDS)
        wait_until(lambda: len(server._way.open) == 1, "the call")
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            stopped = server.stop(0.5)
            assert not stopped(0.1)
            assert stopped(SECONDS)
        assert stalled.code() is not grpc.StatusCode.OK
    never.set()


def test_a_large_message_that_comes_after_the_end_is_not_begun() -> None:
    never = threading.Event()
    with own_server(LANE) as (channel, server):
        kept = channel.stream_unary(UNARY).future(_nothing_until(never), timeout=SECONDS)
        wait_until(lambda: len(server._way.open) == 1, "a call that keeps the queue")
        server._way.closing = True
        answer = Socket(channel).unary(large())
        server._way.closing = False
    never.set()
    assert kept
    assert answer.code is grpc.StatusCode.CANCELLED


# --- who gives way ----------------------------------------------------------------------


@contextmanager
def full(monkeypatch: pytest.MonkeyPatch, *, patience: float) -> Iterator[tuple[Socket, Any]]:
    """Run a server that has all the calls that it takes."""
    monkeypatch.setattr(lane, "_MOST_OPEN", 4)
    monkeypatch.setattr(lane, "_PATIENCE", patience)
    with own_server(LANE) as (channel, server):
        socket = Socket(channel)
        assert socket.unary(build_request()).code is grpc.StatusCode.OK
        never = threading.Event()
        stall = channel.stream_unary(UNARY).future
        stalled = [stall(_nothing_until(never), timeout=SECONDS) for _ in range(4)]
        wait_until(lambda: len(server._way.open) == 4, "all places taken")
        try:
            yield socket, stalled
        finally:
            never.set()


def _nothing_until(event: threading.Event) -> Iterator[bytes]:
    event.wait(SECONDS)
    yield from ()


def overloads(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "overload" in record.message]


def test_the_call_that_stalls_the_longest_gives_way(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with full(monkeypatch, patience=0.0) as (socket, stalled):
        assert socket.unary(build_request()).code is grpc.StatusCode.OK
        assert stalled[0].code() is EXHAUSTED
        assert stalled[0].details() == "4 calls are open, which is this server's limit: try later"
        assert not any(call.done() for call in stalled[1:])
        assert overloads(caplog) == [f"overload, 1 calls refused: {stalled[0].details()}"]


def test_calls_that_have_just_come_do_not_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with full(monkeypatch, patience=60.0) as (socket, stalled):
        assert socket.unary(build_request()).code is EXHAUSTED
        assert not any(call.done() for call in stalled)
        health = HealthStub(socket.channel).Check(HealthCheckRequest(), timeout=SECONDS)
        assert health.status == HealthCheckResponse.SERVING


@pytest.mark.parametrize("patience", [0.0, 30.0])
def test_of_calls_that_send_without_end_the_oldest_gives_way(
    patience: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For gRPC holds what has come of their messages. Who has just begun is left in peace."""
    monkeypatch.setattr(lane, "_MOST_RECEIVE", 2)
    monkeypatch.setattr(lane, "_PATIENCE", patience)
    with own_server(LANE, max_in_flight=1, max_streams=1) as (channel, server):
        assert Socket(channel).unary(build_request()).code is grpc.StatusCode.OK
        never = threading.Event()
        calls = [channel.stream_unary(UNARY).future for _ in range(6)]
        stalled = []
        for begin in calls:
            stalled.append(begin(_nothing_until(never), timeout=SECONDS))
            wait_until(lambda: server._way.receiving >= min(len(stalled), 4), "its place")
        if patience:
            wait_until(lambda: server._way.receiving == 6, "all six")
            assert Socket(channel).unary(build_request()).code is grpc.StatusCode.OK
        else:
            assert [one.code() for one in stalled[:2]] == [EXHAUSTED] * 2
            assert stalled[0].details() == (
                "4 calls send a message, which is this server's limit: try later"
            )
            wait_until(lambda: server._way.receiving == 4, "those that were ended")
            # the second one is of the same second
            assert overloads(caplog) == [f"overload, 1 calls refused: {stalled[0].details()}"]
        assert not any(call.done() for call in stalled[-4:])
        never.set()
        wait_until(lambda: server._way.receiving == 0, "no call left")


@pytest.mark.parametrize("patience", [0.0, 60.0])
def test_metadata_and_small_answers_are_bounded(
    patience: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that wait give way, or where none has waited for long, those that come."""
    monkeypatch.setattr(lane, "_MOST_SMALL", 300_000)
    monkeypatch.setattr(lane, "_PATIENCE", patience)
    metadata = (("x-note", "n" * 6000),)
    with own_server(LANE) as (channel, server):
        never = threading.Event()
        stall = channel.stream_unary(UNARY).future
        stalled = [
            stall(_nothing_until(never), timeout=SECONDS, metadata=metadata) for _ in range(20)
        ]
        wait_until(lambda: sum(call.done() for call in stalled) == 10, "ten that gave way")
        # without patience they may be cut off before their status has left
        may_be = {EXHAUSTED} if patience else {EXHAUSTED, grpc.StatusCode.CANCELLED}
        assert {call.code() for call in stalled if call.done()} <= may_be
        assert "300000 bytes of metadata and answers are held" in caplog.text
        never.set()
        wait_until(lambda: not server._way.open, "no call left")
        assert server._way.small == 0
        for _ in range(3):
            assert Socket(channel).unary(build_request()).code is grpc.StatusCode.OK
        wait_until(lambda: server._way.small == 0, "nothing held")


def test_answers_that_nobody_reads_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "_MOST_HELD", 600_000)
    monkeypatch.setattr(lane, "_PATIENCE", 0.0)
    records: list[CallRecord] = []
    with own_server(LANE, records, max_message_bytes=150_000) as (channel, server):
        environment = [{"key": f"V{i:02}", "value": b"x" * 4000} for i in range(25)]
        request = build_request(environment_vars=environment)
        with connected(channel_address(channel), window=0) as connection:

            def one_gave_way() -> bool:  # to a later call: of those at once, none waits yet
                connection.call(UNARY, request.SerializeToString())
                return any(record.code == "CANCELLED" for record in records)

            for _ in range(20):
                connection.call(UNARY, request.SerializeToString())
            wait_until(one_gave_way, "one that gave way")
            assert {record.code for record in records} <= {"CANCELLED", "RESOURCE_EXHAUSTED"}
            wait_until(lambda: server._way.held._now <= 700_000, "room")
            wait_until(
                lambda: Socket(channel).unary(request).code is grpc.StatusCode.OK, "an answer"
            )


def channel_address(channel: grpc.Channel) -> str:
    target = channel._channel.target().decode()  # type: ignore[attr-defined]
    return str(target).removeprefix("dns:///")


# --- what can go wrong ------------------------------------------------------------------


def raw(channel: grpc.Channel, *wires: bytes, **more: Any) -> Answer:
    call = channel.stream_unary(UNARY, response_deserializer=SpecJSON.FromString)
    return ended(lambda: call.with_call(iter(wires), timeout=SECONDS, **more))


@BOTH
def test_how_many_messages_a_unary_call_has(way: str) -> None:
    wire = build_request().SerializeToString()
    with own_server(way) as (channel, _):
        none = raw(channel)
        assert (none.code, none.details) == (
            grpc.StatusCode.UNIMPLEMENTED,
            "this method takes exactly one message, and none came",
        )
        assert raw(channel, wire, wire).code is grpc.StatusCode.OK
        assert raw(channel, wire, compression=grpc.Compression.Gzip).code is grpc.StatusCode.OK


def test_a_request_beyond_the_limit_is_recorded() -> None:
    records: list[CallRecord] = []
    with own_server(LANE, records, max_message_bytes=50_000) as (channel, _):
        refused = Socket(channel).unary(large())
        zipped = raw(channel, large().SerializeToString(), compression=grpc.Compression.Gzip)
        wait_until(lambda: len(records) == 2, "the records")
    assert (refused.code, zipped.code) == (EXHAUSTED, EXHAUSTED)
    assert [(record.method, record.code) for record in records] == [
        ("GenerateSpec", "RESOURCE_EXHAUSTED")
    ] * 2


def test_an_error_of_the_lane_itself_ends_that_call_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: object, *_: object) -> None:
        raise ZeroDivisionError

    with own_server(LANE) as (channel, server):
        for name in ("begin", "_received", "answer", "send", "finish"):
            with monkeypatch.context() as patched:
                patched.setattr(lane_calls.Call, name, broken)
                assert Socket(channel).unary(build_request()).code is grpc.StatusCode.CANCELLED
            assert Socket(channel).unary(build_request()).code is grpc.StatusCode.OK
        wait_until(lambda: not server._way.open, "no call left")
    assert caplog.text.count("unexpected error on the call lane") == 5


ENDS = """
import sys
from specgen_server.rpc.call_lane.lane import CallLane
from specgen_server.process.cli import main

def ends(*_):
    raise GeneratorExit("no more")

CallLane.{method} = ends
main()
"""


@pytest.mark.parametrize("method", ["_came", "_help"])
def test_a_process_whose_lane_has_ended_ends_too(tmp_path: Path, method: str) -> None:
    """Or it would listen, and answer nothing; a supervisor starts another."""
    command = [sys.executable, "-c", ENDS.format(method=method), "--listen", "127.0.0.1:0"]
    log = tmp_path / "log"
    with (
        log.open("wb") as stderr,
        subprocess.Popen([*command, "--workers", "1"], stderr=stderr) as process,
    ):
        if method == "_came":
            wait_until(lambda: b"listening on " in log.read_bytes(), "an address")
            address = log.read_text().split("listening on ")[1].split()[0]
            with grpc.insecure_channel(address) as channel:
                assert Socket(channel).unary(build_request()).code is grpc.StatusCode.UNAVAILABLE
        assert process.wait(SECONDS) == 1
    assert " failed, so this process ends" in log.read_text()


def test_a_thread_that_cannot_be_started_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the public way; the lane starts none after its start."""

    def fails(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads = Threads(8, "calls")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fails)
        go = threading.Event()
        waits = [threads.submit(go.wait, SECONDS) for _ in range(20)]
        go.set()
        assert {one.result(SECONDS) for one in waits} == {True}
        with pytest.raises(RuntimeError, match="can't start new thread"):
            Threads(8, "none")
    barrier = threading.Barrier(8)  # and later there are as many as there may be
    together = [threads.submit(barrier.wait, SECONDS) for _ in range(8)]
    assert sorted(one.result(SECONDS) for one in together) == list(range(8))


def test_what_a_call_raises_ends_no_thread() -> None:
    threads = Threads(1, "calls")
    assert isinstance(threads.submit(lambda: 1 / 0).exception(SECONDS), ZeroDivisionError)
    assert threads.submit(int).result(SECONDS) == 0
