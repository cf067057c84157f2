"""Very large messages, and the process that answers them."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from support import build_request, file, running_server
from test_call_lane import LANE
from test_service import SECONDS, Answer, Socket, own_server
from test_workers import wait_until

from servers import children
from specgen.v1.specgen_pb2 import GenerateSpecsRequest
from specgen_core import SpecOptions, generate
from specgen_server.rpc.errors import CallerGone, Refused, SideProcessDied, status_of
from specgen_server.rpc.server import Server
from specgen_server.rpc.side_process import VERY_LARGE, SideProcess, parent
from specgen_server.rpc.side_process.__main__ import answered
from specgen_server.rpc.side_process.link import Job, Link, Mark
from specgen_server.settings import Settings, file_of
from specgen_server.telemetry.stats import CallRecord
from tvix.build.protos.build_pb2 import BuildRequest

PUBLIC = "--no-call-lane"
SETTINGS = Settings(max_elements=5000)


def very_large(**fields: Any) -> BuildRequest:
    """Return a request that is answered in the side process."""
    arguments = ["/bin/sh", *["a" * 60_000] * (VERY_LARGE // 60_000 + 1)]
    return build_request(**({"command_args": arguments} | fields))


class Asked:
    """A side process, and what it is asked."""

    def __init__(self, side: SideProcess) -> None:
        self.side = side

    @property
    def pid(self) -> int:
        return self.side._running._process.pid  # type: ignore[union-attr]

    def is_asked(
        self, wire: bytes, *, is_active: Callable[[], bool] = lambda: True
    ) -> bytes | None:
        """Return its answer; None where it leaves that to us."""
        return self.side.answer(wire, SpecOptions(), CallRecord("GenerateSpec"), is_active)

    def wait_until_ready(self) -> None:
        wait_until(self.side.is_ready, "the side process")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    monkeypatch.setattr(parent, "_PAUSE", 0.0)
    side = SideProcess(SETTINGS)
    asked = Asked(side)
    asked.wait_until_ready()
    yield asked
    side.close()


# --- over a socket ----------------------------------------------------------------------


@pytest.mark.parametrize("way", [LANE, PUBLIC], ids=["lane", "public"])
def test_answers_are_those_of_the_server(way: str) -> None:
    """With options from the flags, from the call, and from a message; and all is accounted for."""
    records: list[CallRecord] = []
    options = SpecOptions(terminal=False)
    with own_server(way, records, options=options) as (channel, server):
        small = build_request()
        assert Socket(channel).unary(small).code is grpc.StatusCode.OK
        assert server._side._running is None
        _start(server)
        request = very_large(inputs=[file(f"{i:04}") for i in range(40)])
        own = (("specgen-options", '{"rootless": false}'),)
        [answer] = Socket(channel).unary(request, own).responses
        assert answer == generate(request, options.override(rootless=False))
        bulk = GenerateSpecsRequest(requests=[request, small, very_large(outputs=["/"])])
        bulk.options.rootless = False
        [response] = Socket(channel).bulk([bulk]).responses
        assert response.results[0].spec == answer
        assert response.results[2].error.violations[0].field == "outputs[0]"
        wait_until(lambda: len(records) == 3, "the records")
        assert _has_worked(server)
    assert [record.builds for record in records] == [1, 1, 2]
    assert [record.inputs_total for record in records] == [0, 40, 40]


@pytest.mark.parametrize("way", [LANE, PUBLIC], ids=["lane", "public"])
def test_refusals_are_those_of_the_server(way: str) -> None:
    with own_server(way, max_elements=5000) as (channel, server):
        broken = very_large(working_dir="/", outputs=["../x"])
        many = build_request(inputs=[file(f"{i:05}" + "n" * 100) for i in range(5001)])
        here = [Socket(channel).unary(request) for request in (broken, many)]
        _start(server)
        there = [Socket(channel).unary(request) for request in (broken, many)]
        assert _has_worked(server)
    assert there == here
    assert [answer.code.name for answer in here] == ["INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"]
    assert "grpc-status-details-bin" in here[0].trailers


def _start(server: Server) -> None:
    wait_until(server._side.is_ready, "the side process")


def _has_worked(server: Server) -> bool:
    assert server._side._running
    return server._side._running._number > 0


def test_small_calls_do_not_wait_for_it() -> None:
    with own_server(LANE) as (channel, server):
        _start(server)
        pid = server._side._running._process.pid  # type: ignore[union-attr]
        os.kill(pid, signal.SIGSTOP)
        answers: list[Answer] = []
        caller = threading.Thread(
            target=lambda: answers.append(Socket(channel).unary(very_large()))
        )
        caller.start()
        for _ in range(5):
            assert Socket(channel).unary(build_request()).code is grpc.StatusCode.OK
        caller.join(SECONDS)
    assert [answer.code for answer in answers] == [grpc.StatusCode.OK]


# --- when it fails ----------------------------------------------------------------------


def test_until_it_is_ready_the_server_answers() -> None:
    with own_server(LANE) as (channel, server):
        request = very_large()
        [answer] = Socket(channel).unary(request).responses
        assert answer == generate(request, SpecOptions())
        assert server._side._running and server._side._running._number == 0


def test_one_that_died_between_messages_is_replaced(
    asked: Asked, caplog: pytest.LogCaptureFixture
) -> None:
    wire = very_large().SerializeToString()
    answer = asked.is_asked(wire)
    died = asked.pid
    os.kill(died, signal.SIGKILL)
    wait_until(asked.side._running.has_died, "its end")  # type: ignore[union-attr]
    assert asked.is_asked(wire) is None
    asked.wait_until_ready()
    assert asked.pid != died
    assert asked.is_asked(wire) == answer
    assert [record.message for record in caplog.records] == [
        "side process: it died (SIGKILL); another one in 0 s"
    ]


def test_one_that_dies_of_a_message_takes_only_that_along(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been the message: so nobody else tries it."""
    monkeypatch.setattr(parent, "_WINDOW", SECONDS)
    os.kill(asked.pid, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (asked.pid, signal.SIGKILL)).start()
    with pytest.raises(SideProcessDied) as died:
        asked.is_asked(b"\0" * (VERY_LARGE + 1))
    assert status_of(died.value).code is grpc.StatusCode.UNAVAILABLE
    asked.wait_until_ready()


@pytest.mark.parametrize("size", [100, 4 << 20], ids=["waiting", "sending"])
def test_one_that_does_not_get_on_is_replaced(
    asked: Asked, size: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A stopped one stands for one that others leave no time."""
    monkeypatch.setattr(parent, "VERY_LARGE", 10)
    stopped = asked.pid
    os.kill(stopped, signal.SIGSTOP)
    assert asked.is_asked(b"\0" * size) is None
    assert not Path(f"/proc/{stopped}").exists()
    asked.wait_until_ready()
    assert caplog.records[0].message == (
        "side process: it does not get on (SIGKILL); another one in 0 s"
    )


def test_a_reply_that_was_not_taken_is_nobody_elses(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> float:
        raise MemoryError

    first, second = (very_large(working_dir=name).SerializeToString() for name in ("a", "b"))
    with monkeypatch.context() as patch:
        patch.setattr(parent._Running, "_processor_time", fail)
        with pytest.raises(MemoryError):
            asked.is_asked(first)
    asked.wait_until_ready()
    assert asked.is_asked(second) == generate(second, SpecOptions()).SerializeToString()


def test_a_reply_to_something_else_ends_it(asked: Asked) -> None:
    asked.side._running._link.send(Job(7, SpecOptions(), ""), b"")  # type: ignore[union-attr]
    ended = asked.pid
    with suppress(SideProcessDied):  # which it may find out before it asks
        assert asked.is_asked(very_large().SerializeToString()) is None
    asked.wait_until_ready()
    assert asked.pid != ended


def test_nobody_waits_for_what_another_asked(asked: Asked) -> None:
    with asked.side._lock:
        assert asked.is_asked(very_large().SerializeToString()) is None


def test_pauses_grow_where_it_never_gets_on(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked.side, "_pause", 100.0)
    os.kill(asked.pid, signal.SIGSTOP)
    assert asked.is_asked(very_large().SerializeToString()) is None
    assert asked.side._pause == 200.0
    assert not asked.side.is_ready()


def test_one_that_ends_by_a_real_time_signal(
    asked: Asked, caplog: pytest.LogCaptureFixture
) -> None:
    os.kill(asked.pid, signal.SIGRTMIN + 1)
    wait_until(asked.side._running.has_died, "its end")  # type: ignore[union-attr]
    asked.wait_until_ready()
    assert f"it died (signal {signal.SIGRTMIN + 1})" in caplog.text


def test_nothing_is_imported_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    side = SideProcess(SETTINGS)
    wait_until(side.is_ready, "the side process")
    side.close()


def test_one_that_cannot_be_started_is_tried_again_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    side = SideProcess(SETTINGS)
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    assert not side.is_ready()
    assert not side.is_ready()
    assert [record.message for record in caplog.records] == [
        "the side process cannot be started: [Errno 2] No such file or directory: '/nonexistent'"
    ]
    monkeypatch.undo()
    monkeypatch.setattr(side, "_start_at", 0.0)
    wait_until(side.is_ready, "the side process")
    side.close()
    assert not side.is_ready()


def test_a_caller_who_leaves_is_not_worked_for(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process looks between its steps."""
    monkeypatch.setattr(parent, "_LOOK_EVERY", 0.0)
    with pytest.raises(Refused) as refused:
        asked.is_asked(very_large().SerializeToString(), is_active=lambda: False)
    assert status_of(refused.value).code is grpc.StatusCode.CANCELLED


def test_a_long_answer_that_nobody_waits_for_ends_it(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(parent, "_LOOK_EVERY", 0.0)
    monkeypatch.setattr(parent, "_LONGEST_IN_VAIN", 0.0)
    with pytest.raises(CallerGone):
        asked.is_asked(very_large().SerializeToString(), is_active=lambda: False)
    assert "side process: nobody waits for its answer (SIGKILL)" in caplog.text
    asked.wait_until_ready()  # another one


def test_one_that_hangs_at_its_start_is_ended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(*_: Any, **__: Any) -> Any:
        return subprocess.Popen(("sleep", "60"))

    monkeypatch.setattr(parent.child_process, "start", start)
    monkeypatch.setattr(parent, "_LONGEST_START", 0.0)
    side = SideProcess(SETTINGS)
    assert not side.is_ready()
    pid = side._running._process.pid  # type: ignore[union-attr]
    assert not side.is_ready()
    assert "side process: it does not start (SIGKILL)" in caplog.text
    assert not Path(f"/proc/{pid}").exists()


def test_unexpected_errors_are_logged_there(caplog: pytest.LogCaptureFixture) -> None:
    given_up, fd = Mark.new()
    os.close(fd)
    broken: Any = None
    reply, answer = answered(Job(1, SpecOptions(), "of-a-test"), b"", broken, given_up)
    assert (reply.code, answer) == ("INTERNAL", b"")
    assert caplog.records[0].levelno == logging.ERROR
    assert caplog.records[0].request_id == "of-a-test"  # type: ignore[attr-defined]


# --- how it ends ------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_server(how: signal.Signals, tmp_path: Path) -> None:
    with running_server("127.0.0.1:0", tmp_path / "log", "--workers", "1") as server:
        with grpc.insecure_channel(server.address) as channel:
            assert Socket(channel).unary(very_large()).code is grpc.StatusCode.OK
        [side] = children(server.process.pid)
        server.process.send_signal(how)
        server.process.wait(SECONDS)
        wait_until(lambda: not _runs(side), "the end of the side process")


def test_a_supervisor_that_adopts_it_lets_it_go(tmp_path: Path) -> None:
    """As the first process of a container does; here by PR_SET_CHILD_SUBREAPER."""
    adopt = partial(ctypes.CDLL(None).prctl, 36, 1)
    with running_server(
        "127.0.0.1:0", tmp_path / "log", "--workers", "2", preexec_fn=adopt
    ) as server:
        with grpc.insecure_channel(server.address) as channel:
            assert Socket(channel).unary(very_large()).code is grpc.StatusCode.OK
        [worker] = [pid for pid in children(server.process.pid) if children(pid)]
        [side] = children(worker)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{side}").exists(), "no side process, nor its zombie")
        wait_until(lambda: len(children(server.process.pid)) == 2, "another worker")


def _runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_stop_signals_are_not_for_it(tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to all processes: what is being answered is answered."""
    with running_server("127.0.0.1:0", tmp_path / "log", "--workers", "1") as server:
        with grpc.insecure_channel(server.address) as channel:
            assert Socket(channel).unary(very_large()).code is grpc.StatusCode.OK
            [side] = children(server.process.pid)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(side, number)
            time.sleep(0.1)
            assert Socket(channel).unary(very_large()).code is grpc.StatusCode.OK
        assert children(server.process.pid) == [side]
        assert "side process" not in server.log.read_text()


# --- the link ---------------------------------------------------------------------------


def test_what_is_cut_short_is_the_end() -> None:
    ours, theirs = socket.socketpair()
    link = Link(ours, Job, longest_still=1)
    theirs.sendall(b"\1")
    with pytest.raises(BlockingIOError):
        link.receive()
    theirs.close()
    with pytest.raises(EOFError):
        link.receive()
    link.close()


def test_what_comes_in_pieces_is_put_together() -> None:
    """A process that is stopped and goes on gets a part of what it waits for."""

    class Pieces:
        def __init__(self) -> None:
            self.left = [b"abc", b"d", b"efgh"]

        def recv(self, size: int, flags: int) -> bytes:
            return self.left.pop(0) if self.left else b""

    link: Any = Link.__new__(Link)
    link._socket = Pieces()
    assert link._exactly(8) == b"abcdefgh"
    with pytest.raises(EOFError):
        link._exactly(1)


def test_settings_come_through() -> None:
    program = (
        "from specgen_server.settings import file_of, read_settings;"
        "print(file_of(read_settings()).read().decode())"
    )
    with file_of(SETTINGS) as told:
        run = subprocess.run([sys.executable, "-c", program], stdin=told, capture_output=True)
    assert msgspec.json.decode(run.stdout, type=Settings) == SETTINGS
