"""Every way to wait, waiting for the same things."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.lowlevel

from shim.ttrpc.blocking import run
from shimctl import backend
from shimctl.on_asyncio import ASYNCIO
from shimctl.on_threads import THREADS

if TYPE_CHECKING:
    from collections.abc import Callable


async def _nothing() -> None:
    pass


# The way each runs its coroutines, and its short pause.
FACES: dict[str, tuple[Any, Callable[[Any], Any], Callable[[], Any]]] = {
    "trio": (backend.TRIO, trio.run, trio.lowlevel.checkpoint),
    "asyncio": (ASYNCIO, lambda main: asyncio.run(main()), lambda: asyncio.sleep(0)),
    "threads": (THREADS, lambda main: run(main()), _nothing),
}


@pytest.mark.parametrize("name", FACES)
def test_no_more_is_done_at_once_than_a_process_may_have_files(name: str) -> None:
    """As many shims as a large host has are all asked: none is dead for want of an fd."""
    waiting, start, moment = FACES[name]
    lock = threading.Lock()
    now = most = done = 0

    async def work() -> None:
        nonlocal now, most, done
        with lock:
            now += 1
            most = max(most, now)
        await moment()
        with lock:
            now -= 1
            done += 1

    async def main() -> None:
        await waiting.run_all([work] * 2000)

    start(main)
    assert done == 2000
    assert most <= backend.AT_ONCE


@pytest.mark.parametrize("name", FACES)
def test_what_is_readable_is_said_and_what_is_not_has_a_bound(name: str) -> None:
    waiting, start, _ = FACES[name]
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    seen: list[bool] = []

    async def main() -> None:
        seen.append(await waiting.wait_readable(fd, 0.01))
        os.eventfd_write(fd, 1)
        seen.append(await waiting.wait_readable(fd, 10))

    try:
        start(main)
    finally:
        os.close(fd)
    assert seen == [False, True]
