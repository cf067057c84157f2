"""The pool's few threads, and those that come when calls stall."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import pytest

from specgen_server.rpc import call_pool
from specgen_server.rpc.call_pool import CallPool

SECONDS = 10.0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def threads_of(pool: CallPool) -> int:
    return pool._threads_now


def test_calls_are_answered_and_counted() -> None:
    pool = CallPool("counted", limit=4, few=2)
    go = threading.Event()
    done: list[object] = []

    for i in range(5):
        pool.submit(lambda i=i: (go.wait(SECONDS), done.append(i)))
    assert pool.in_flight == 5
    go.set()

    wait_until(lambda: pool.in_flight == 0)
    assert sorted(done) == [0, 1, 2, 3, 4]


def test_a_few_threads_are_enough_while_calls_end() -> None:
    pool = CallPool("few", limit=100, few=2)
    left = threading.Semaphore(0)
    for _ in range(200):
        pool.submit(left.release)
    for _ in range(200):
        assert left.acquire(timeout=SECONDS)

    assert threads_of(pool) == 2


def test_calls_that_stall_hold_no_thread_that_others_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_pool, "_CALM", 0.05)
    pool = CallPool("stalled", limit=50, few=2)
    go, answered = threading.Event(), threading.Event()

    for _ in range(50):
        pool.submit(go.wait, SECONDS)
    pool.submit(answered.set)
    assert answered.wait(SECONDS)
    assert threads_of(pool) > 50

    # and once all is calm, the threads that are too many go as calls come
    go.set()
    wait_until(lambda: pool.in_flight == 0)
    time.sleep(0.1)

    def one_more_call_leaves_few() -> bool:
        pool.submit(int)
        return threads_of(pool) == 2

    wait_until(one_more_call_leaves_few)


def test_there_are_never_more_threads_than_the_limit_and_some_to_refuse_with() -> None:
    pool = CallPool("limited", limit=3, few=1)
    go = threading.Event()
    for _ in range(40):
        pool.submit(go.wait, SECONDS)
    time.sleep(0.1)

    assert threads_of(pool) == 3 + call_pool._SPARE_THREADS
    assert pool.in_flight == 40
    go.set()
    wait_until(lambda: pool.in_flight == 0)


@pytest.mark.parametrize("late", [False, True], ids=["callback_first", "call_ends_first"])
def test_a_callback_is_called_once_after_the_call(late: bool) -> None:
    pool = CallPool("callback", limit=2, few=1)
    go, called = threading.Event(), []
    call = pool.submit(go.wait, SECONDS)
    if late:
        go.set()
        wait_until(lambda: pool.in_flight == 0)
        time.sleep(0.05)
    call.add_done_callback(called.append)
    if not late:
        assert not called
        go.set()

    wait_until(lambda: bool(called))
    time.sleep(0.02)
    assert called == [call]


def test_an_error_ends_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    pool = CallPool("broken", limit=1, few=1)
    answered = threading.Event()

    with caplog.at_level(logging.ERROR):
        pool.submit(lambda: 1 / 0)
        pool.submit(answered.set)
        assert answered.wait(SECONDS)

    assert "ZeroDivisionError" in caplog.text


def test_no_thread_goes_that_a_call_counts_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_pool, "_CALM", -1.0)
    pool = CallPool("counted_on", limit=8, few=1)
    pool._threads_now = 3

    pool.in_flight = 3  # as many calls as threads: one of them waits for this one
    assert not pool._is_one_too_many()
    pool.in_flight = 2
    assert pool._is_one_too_many()
    assert threads_of(pool) == 2
