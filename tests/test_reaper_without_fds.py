"""The reaper when this process can open no more fds, as in a daemon with too many containers."""

from __future__ import annotations

import os
import resource
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from shim.reaper import open_reaper
from tests.test_reaper import state_of
from tests.test_reaper_orphans import DETACH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def no_fd_left() -> Iterator[None]:
    """Take every fd that this process may open, for the block."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limit[1]))
    taken: list[int] = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def children() -> set[int]:
    """Return our children, zombies too."""
    me = os.getpid()
    words = Path(f"/proc/{me}/task/{me}/children").read_text().split()
    return {int(word) for word in words}


@pytest.mark.parametrize("kind", ["spawn", "fork"])
async def test_a_process_that_no_fd_is_left_to_watch_is_killed(kind: str) -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    before = children()
    async with open_reaper() as reaper:
        make: dict[str, Callable[[], object]] = {
            "spawn": lambda: reaper.spawn(["sleep", "1000"], fds={0: null, 1: null, 2: null}),
            "fork": lambda: reaper.fork(["sleeper"], lambda: time.sleep(1000), []),
        }
        with no_fd_left(), pytest.raises(OSError, match="Too many open files"):
            make[kind]()
        with trio.fail_after(20):
            while children() - before:
                await trio.sleep(0.01)
    os.close(null)


@pytest.mark.usefixtures("subreaper")
async def test_an_orphan_is_killed_though_no_fd_is_left_to_watch_it(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    async with open_reaper() as reaper:
        with reaper.runtime_running():
            await reaper.spawn(["perl", "-e", DETACH, "never", str(file)]).wait()
            pid = int(file.read_text())
            with no_fd_left():
                reaper.kill_orphan(pid)
        with trio.fail_after(20):
            while state_of(pid):
                await trio.sleep(0.01)
