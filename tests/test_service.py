"""When a shim is deserted; what the methods mean is tested with real containers."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from shim.container.host import Host
from shim.events.publisher import NullPublisher
from shim.reaper import open_reaper
from shim.service import TaskService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.testing import MockClock


@asynccontextmanager
async def watched(seconds: float) -> AsyncIterator[tuple[TaskService, trio.Event]]:
    """A service without containers, and what is set when it has been deserted."""
    deserted = trio.Event()
    async with open_reaper() as reaper, trio.open_nursery() as nursery:
        host = Host("test", reaper, NullPublisher(), nursery, 10)
        service = TaskService(host, trio.Event())

        async def watch() -> None:
            await service.wait_unused(seconds)
            deserted.set()

        nursery.start_soon(watch)
        yield service, deserted
        nursery.cancel_scope.cancel()


async def test_a_shim_that_nobody_comes_to_is_deserted(autojump_clock: MockClock) -> None:
    async with watched(30) as (_, deserted):
        began = trio.current_time()
        await deserted.wait()
        assert trio.current_time() - began == 30


async def test_with_a_container_made_or_being_made_it_is_not(autojump_clock: MockClock) -> None:
    async with watched(30) as (service, deserted):
        for _ in range(3):
            await trio.sleep(29)
            service._reserve("c1")
            await trio.sleep(1000)
            service._reserve("c2")
            service._release("c1")
            await trio.sleep(1000)
            service._release("c2")
        assert not deserted.is_set()
        began = trio.current_time()
        await deserted.wait()
        assert trio.current_time() - began == 30
