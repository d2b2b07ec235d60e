"""A daemon starts a fork server again until one listens, or none can."""

from __future__ import annotations

import errno
import fcntl
import os
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, NoReturn, cast

import pytest
import trio

from shim.recovery.alike import beside
from shim.revival import start_server
from shim.start import forkserver, identity, newserver

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

    from shim.reaper import Reaper


class Spawner:
    """Its programs end with the ``outcomes``, exit statuses or the errors of a spawn.

    A negative one is the number of seconds until the program ends, by SIGKILL.
    """

    def __init__(self, *outcomes: int | OSError) -> None:
        self._outcomes = list(outcomes)
        self.times: list[float] = []

    def spawn(self, _: list[str]) -> SimpleNamespace:
        self.times.append(trio.current_time())
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome

        async def wait() -> SimpleNamespace:
            await trio.sleep(max(-outcome, 0))
            return SimpleNamespace(exit_status=outcome if outcome >= 0 else 137)

        return SimpleNamespace(wait=wait)


async def start(spawner: Spawner, directory: Path) -> bool:
    with trio.fail_after(600):
        return await start_server(cast("Reaper", spawner), "shim", f"{directory}/a1-own")


@pytest.mark.parametrize("last", [0, 1])
async def test_an_attempt_that_fails_is_followed_by_another_a_minute_later(
    tmp_path: Path, autojump_clock: MockClock, last: int, capfd: pytest.CaptureFixture[str]
) -> None:
    again = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    full = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    spawner = Spawner(137, again, full, os.EX_TEMPFAIL, last)
    assert await start(spawner, tmp_path) is False
    assert len(spawner.times) == 5
    assert all(after - before >= 60 for before, after in pairwise(spawner.times))
    assert "cannot allocate memory" in capfd.readouterr().err
    del autojump_clock


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOSPC, "full")])
def test_a_server_that_lacks_memory_or_room_may_be_started_later(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_: str, ready: int) -> NoReturn:
        os.close(ready)
        raise error

    monkeypatch.setattr(identity, "socket_path", lambda: "/absent/a1-new")
    monkeypatch.setattr(newserver, "leave_caller", lambda: None)
    monkeypatch.setattr(forkserver, "serve_new", fail)
    assert forkserver.serve_again("shim", "/absent/a1-own") == os.EX_TEMPFAIL
    assert forkserver.serve_again("shim", "/absent/b2-own") == 1  # it has other attributes


async def test_the_end_of_the_daemon_that_starts_a_server_leaves_that_to_another(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    spawner = Spawner(0)
    with open(beside(f"{tmp_path}/a1-own", ".again"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(start, spawner, tmp_path)
            await trio.sleep(30)
            assert not spawner.times
            lock.close()
    assert len(spawner.times) == 1
    del autojump_clock


async def test_no_second_server_is_started_beside_a_slow_one(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    spawner = Spawner(-200, 0)
    await start(spawner, tmp_path)
    assert len(spawner.times) == 2
    assert spawner.times[1] >= spawner.times[0] + 200
    del autojump_clock
