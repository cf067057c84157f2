"""Servers to try: started, asked whether they serve, and ended, by their own process ids."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from specgen_client import SpecClient

__all__ = ["Running", "children", "free_port", "processor_time", "resident", "running_server"]


def free_port() -> int:
    """Return a port of loopback that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Running:
    """A specgen-server process on loopback."""

    def __init__(self, *flags: str, listen: str | None = None) -> None:
        self.address = listen or f"127.0.0.1:{free_port()}"
        self._flags = flags
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                sys.executable,
                *("-m", "specgen_server"),
                *("--listen", self.address),
                *("--log-level", "error"),
                *self._flags,
            ]
        )

    def wait_until_serving(self, seconds: float = 20) -> None:
        """Return once it takes calls; raises SpecgenError if it does not in time."""
        with SpecClient(self.address, timeout=seconds, wait_for_ready=True) as client:
            if not client.is_serving():
                raise RuntimeError(f"{self.address} does not serve")

    def restart(self) -> int:
        """Stop it in order and start it anew; return the exit code it had."""
        code = self.stop()
        self.process = self._start()
        self.wait_until_serving()
        return code

    def stop(self, seconds: float = 60) -> int:
        """Stop it in order and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextmanager
def running_server(*flags: str, listen: str | None = None) -> Iterator[Running]:
    """Yield a server that serves, and stop it at the end."""
    server = Running(*flags, listen=listen)
    try:
        server.wait_until_serving()
        yield server
    finally:
        server.stop()


def resident(pid: int | str) -> int:
    """Return the resident memory of a process, in bytes."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0
    return next(
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:")
    )


def processor_time(pid: int) -> float:
    """Return the seconds of processors that a process and those below it have taken."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    own = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")  # proc_pid_stat(5)
    return own + sum(map(processor_time, children(pid)))


def children(pid: int) -> list[int]:
    """Return the ids of the processes that a process has started, by whichever thread."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for thread in threads for child in thread.read_text().split()]
