"""Worker processes: several on one address, replaced when they die, gone with their supervisor."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import RunningServer, build_request, running_server

from specgen_client import SpecClient

TWO_WORKERS = ("--workers", "2")


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def answers(address: str) -> bool:
    with SpecClient(address, timeout=20, wait_for_ready=True) as client:
        return bool(client.generate(build_request()).json)


def start(*flags: str) -> subprocess.CompletedProcess[str]:
    """Start a server that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "specgen_server", *flags],
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_one_worker_has_no_supervisor(tmp_path: Path) -> None:
    with running_server("127.0.0.1:0", tmp_path / "log", "--workers", "1") as server:
        assert answers(server.address)
        assert children(server.process.pid) == []


def test_workers_share_an_address(tmp_path: Path) -> None:
    with running_server("127.0.0.1:0", tmp_path / "log", *TWO_WORKERS) as server:
        assert len(children(server.process.pid)) == 2
        assert answers(server.address)
        assert not server.address.endswith(":0")


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    with running_server("127.0.0.1:0", tmp_path / "log", *TWO_WORKERS) as server:
        killed = children(server.process.pid)[0]
        os.kill(killed, signal.SIGKILL)

        def replaced() -> bool:
            workers = children(server.process.pid)
            return len(workers) == 2 and killed not in workers

        wait_until(replaced, "a new worker")
        assert answers(server.address)
        assert "worker 0 died (SIGKILL)" in server.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_stop_signal_ends_all_with_exit_code_0(
    tmp_path: Path, number: signal.Signals, workers: str
) -> None:
    with running_server("127.0.0.1:0", tmp_path / "log", "--workers", workers) as server:
        started = children(server.process.pid)
        server.process.send_signal(number)
        assert server.process.wait(20) == 0
        assert not any(map(alive, started))
        assert "Traceback" not in server.log.read_text()


def test_workers_are_of_the_session_of_the_server(tmp_path: Path) -> None:
    """Ctrl-C is not for them, but on Linux a session can starve beside others (autogroups)."""
    with running_server("127.0.0.1:0", tmp_path / "log", *TWO_WORKERS) as server:
        pids = [server.process.pid, *children(server.process.pid)]
        assert [os.getpgid(pid) for pid in pids] == pids
        assert {os.getsid(pid) for pid in pids} == {os.getsid(0)}


def test_no_orphan_stays_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    with running_server("127.0.0.1:0", tmp_path / "log", *TWO_WORKERS) as server:
        workers = children(server.process.pid)
        server.process.kill()
        server.process.wait()
        wait_until(lambda: not any(map(alive, workers)), "the workers gone")


def test_a_worker_that_keeps_dying_ends_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # runs before all else in every Python below this directory, the workers' too
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'specgen_server.process.worker' in sys.orig_argv:\n    os._exit(3)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ended = start("--listen", "127.0.0.1:0", *TWO_WORKERS)
    assert ended.returncode == 1
    assert "died (exit code 3), starting it again in" in ended.stderr
    assert "a worker failed 5 times in a row: giving up" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("first", ["1", "2"])
@pytest.mark.parametrize("second", ["1", "2"])
def test_a_second_server_on_a_tcp_address_says_so(tmp_path: Path, first: str, second: str) -> None:
    with running_server("127.0.0.1:0", tmp_path / "log", "--workers", first) as server:
        ended = start("--listen", server.address, "--workers", second)
        assert ended.returncode == 1
        assert f"cannot listen on {server.address}: Address already in use" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert answers(server.address)


def test_two_servers_at_the_same_moment(tmp_path: Path) -> None:
    """Neither of two supervisors has workers that listen yet, and still just one stays."""
    with running_server("127.0.0.1:0", tmp_path / "log", "--workers", "1") as server:
        address = server.address  # a free port, from here on
    command = [sys.executable, "-m", "specgen_server", "--listen", address, *TWO_WORKERS]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        wait_until(lambda: any(one.poll() is not None for one in both), "one of them gone")
        loser, winner = sorted(both, key=lambda one: one.poll() is None)
        assert loser.returncode == 1
        assert loser.stderr and "Address already in use" in loser.stderr.read()
        assert answers(address)
        assert winner.poll() is None
    finally:
        for one in both:
            one.terminate()
            one.communicate(timeout=20)


def test_the_default_is_a_worker_per_cpu(tmp_path: Path) -> None:
    with running_server("127.0.0.1:0", tmp_path / "log") as server:
        cpus = len(os.sched_getaffinity(server.process.pid))
        assert len(children(server.process.pid)) == (cpus if cpus > 1 else 0)


def test_a_unix_socket_takes_one_worker(unix_server: RunningServer) -> None:
    assert children(unix_server.process.pid) == []
    ended = start("--listen", "unix:///tmp/specgen-test.sock", "--workers", "2")
    assert ended.returncode == 2
    assert "a unix socket takes one worker" in ended.stderr


def test_a_worker_that_falls_silent_is_replaced(tmp_path: Path) -> None:
    with running_server("127.0.0.1:0", tmp_path / "log", *TWO_WORKERS) as server:
        stopped = children(server.process.pid)[0]
        os.kill(stopped, signal.SIGSTOP)

        def replaced() -> bool:
            workers = children(server.process.pid)
            return len(workers) == 2 and stopped not in workers

        wait_until(replaced, "a new worker", 60)
        assert answers(server.address)
        log = server.log.read_text()
        assert "worker 0 is silent: killing it" in log
        assert "worker 0 died (SIGKILL), starting it again in 0.0 s" in log


def test_a_worker_that_outlives_the_grace_is_killed(tmp_path: Path) -> None:
    flags = (*TWO_WORKERS, "--grace", "0.5")
    with running_server("127.0.0.1:0", tmp_path / "log", *flags) as server:
        stopped = children(server.process.pid)[0]
        os.kill(stopped, signal.SIGSTOP)
        server.process.terminate()
        assert server.process.wait(20) == 1
        assert not alive(stopped)
        assert "killing the workers that have not ended" in server.log.read_text()


def test_a_supervisor_that_was_stopped_for_a_while_takes_no_worker_for_silent(
    tmp_path: Path,
) -> None:
    with running_server("127.0.0.1:0", tmp_path / "log", *TWO_WORKERS) as server:
        workers = children(server.process.pid)
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(1)
        assert answers(server.address)  # their reports find nobody, and hold them up in nothing
        server.process.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        assert children(server.process.pid) == workers


def test_a_worker_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    """As when there is no descriptor, no memory or no process to be had."""
    with running_server("127.0.0.1:0", tmp_path / "log", *TWO_WORKERS) as server:
        pid = server.process.pid
        sound, killed = children(pid)
        limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limit[1]))
        os.kill(killed, signal.SIGKILL)
        failed = "worker 1 cannot be started ([Errno 24] Too many open files)"
        wait_until(lambda: server.log.read_text().count(failed) >= 6, "six attempts", 40)
        assert children(pid) == [sound]
        assert answers(server.address)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
        wait_until(lambda: len(children(pid)) == 2, "a new worker")
        assert sound in children(pid)


def test_a_worker_that_fails_at_its_start_is_no_end_to_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "worker = 'specgen_server.process.worker' in sys.orig_argv\n"
        f"if worker and os.path.exists({str(broken)!r}): os._exit(3)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with running_server("127.0.0.1:0", tmp_path / "log", *TWO_WORKERS) as server:
        sound, killed = children(server.process.pid)
        broken.touch()
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: server.log.read_text().count("died (exit code 3)") >= 6, "failures", 40)
        assert answers(server.address)
        broken.unlink()
        wait_until(lambda: len(children(server.process.pid)) == 2, "a new worker")
        assert sound in children(server.process.pid)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_process_whose_thread_fails_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    """As gRPC's own does when it cannot start another: it would listen and answer nobody."""
    fail = tmp_path / "fail"
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, threading, time\n"
        "def run():\n"
        f"    while not os.path.exists({str(fail)!r}): time.sleep(0.01)\n"
        f"    os.unlink({str(fail)!r})\n"
        '    raise RuntimeError("can\'t start new thread")\n'
        f"if {workers!r} == '1' or 'specgen_server.process.worker' in sys.orig_argv:\n"
        "    threading.Thread(target=run, name='serving', daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    said = "thread serving failed, so this process ends"
    with running_server("127.0.0.1:0", tmp_path / "log", "--workers", workers) as server:
        before = children(server.process.pid)
        fail.touch()
        wait_until(lambda: said in server.log.read_text(), "the log line")
        if workers == "1":
            assert server.process.wait(20) == 1
        else:
            wait_until(lambda: children(server.process.pid) != before, "a new worker")
            assert answers(server.address)
            assert "died (exit code 1)" in server.log.read_text()
        assert "RuntimeError: can't start new thread" in server.log.read_text()


def test_the_same_signal_twice_is_one(tmp_path: Path) -> None:
    flags = (*TWO_WORKERS, "--drain-delay", "1")
    with running_server("127.0.0.1:0", tmp_path / "log", *flags) as server:
        for _ in range(50):
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.005)
        assert server.process.wait(20) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_another_signal_ends_it_at_once(tmp_path: Path, workers: str) -> None:
    flags = ("--workers", workers, "--drain-delay", "60")
    with running_server("127.0.0.1:0", tmp_path / "log", *flags) as server:
        started = children(server.process.pid)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in server.log.read_text(), "the first signal seen")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(5) == 1
        wait_until(lambda: not any(map(alive, started)), "workers that are gone", 5)
