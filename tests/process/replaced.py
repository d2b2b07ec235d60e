"""A daemon that a test kills, and the replacement that the fork server makes of it."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import trio

from tests.e2e.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.process.servers import Server

# The file of a saved state, as in the fds of a process.
STATE = "/memfd:trio-shim-state (deleted)"


async def connect(server: Server) -> int:
    """Connect to the address; return the pid of the daemon there."""
    server.rig.daemons.clear()
    await server.rig.connect()
    return server.rig.daemons[0]


async def replaced(server: Server, daemon: int, number: int = signal.SIGKILL) -> int:
    """Kill the daemon; return the pid of its replacement."""
    os.kill(daemon, number)
    replacement = await connect(server)
    assert replacement != daemon
    return replacement


def files_of(pid: int) -> list[str]:
    """Return the files of a process's fds, in the order of their numbers."""
    found = []
    for number in sorted(map(int, os.listdir(f"/proc/{pid}/fd"))):
        with suppress(FileNotFoundError):  # closed since
            found.append(os.readlink(f"/proc/{pid}/fd/{number}"))  # noqa: PTH115 - as in /proc
    return found


async def wait_for(condition: Callable[[], object]) -> None:
    with trio.fail_after(10 * PATIENCE):
        while not condition():
            await trio.sleep(0.01)


@contextmanager
def log_of(bundle: Path) -> Iterator[Callable[[], bytes]]:
    """Make the log fifo of ``bundle``; yield a function that returns what was logged since."""
    os.mkfifo(bundle / "log")
    log = os.open(bundle / "log", os.O_RDONLY | os.O_NONBLOCK)

    def read() -> bytes:
        try:
            return os.read(log, 1 << 16)
        except BlockingIOError:
            return b""

    try:
        yield read
    finally:
        os.close(log)
