"""A shim without containers; other tests check the methods with real containers."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import trio
from google.protobuf.empty_pb2 import Empty

from shim.api.task_pb2 import (
    ConnectRequest,
    ConnectResponse,
    CreateTaskRequest,
    CreateTaskResponse,
    ShutdownRequest,
)
from shim.container import creations
from shim.container.containers import JOIN_LIMIT
from shim.container.host import Host
from shim.errors import NotFoundError, ShimError
from shim.events.source import NullPublisher
from shim.reaper import open_reaper
from shim.service import TaskService
from shim.ttrpc.server import Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest
    from trio.testing import MockClock


@asynccontextmanager
async def watched(seconds: float) -> AsyncIterator[tuple[TaskService, trio.Event]]:
    """A service without containers, and the event that is set when it is unused."""
    deserted = trio.Event()
    async with open_reaper() as reaper, trio.open_nursery() as nursery:
        host = Host("test", reaper, NullPublisher(), nursery, 10)
        service = TaskService(host, trio.Event())

        async def watch() -> None:
            await service.containers.wait_unused(seconds)
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
            service.containers.reserve("c1")
            await trio.sleep(1000)
            service.containers.reserve("c2")
            service.containers.release("c1")
            await trio.sleep(1000)
            service.containers.release("c2")
        assert not deserted.is_set()
        began = trio.current_time()
        await deserted.wait()
        assert trio.current_time() - began == 30


async def join(service: TaskService) -> None:
    """Do as a ``start`` that finds the shim's socket."""
    await connect(service, ConnectRequest(joins=True))


async def connect(service: TaskService, request: ConnectRequest) -> None:
    await service.Connect(Stream[ConnectRequest, ConnectResponse](request, {}))


async def shut_down(service: TaskService) -> None:
    await service.Shutdown(Stream[ShutdownRequest, Empty](ShutdownRequest(id="c0"), {}))


async def test_a_shim_that_a_start_has_joined_waits_for_its_create(
    autojump_clock: MockClock,
) -> None:
    async with watched(30) as (service, _):
        await join(service)
        await trio.sleep(1)
        await join(service)
        await shut_down(service)
        await trio.sleep(JOIN_LIMIT - 0.1)
        assert not service.containers.shutdown.is_set()
        service.containers.reserve("c1")
        await trio.sleep(1)
        service.containers.release("c1")
        assert not service.containers.shutdown.is_set()
        # The second start's Create was the one: no other is expected.
        await shut_down(service)
        assert service.containers.shutdown.is_set()


async def test_a_shim_whose_start_sends_no_create_ends(autojump_clock: MockClock) -> None:
    async with watched(30) as (service, _):
        await join(service)
        began = trio.current_time()
        await trio.sleep(1)
        await shut_down(service)
        await service.containers.shutdown.wait()
        assert trio.current_time() - began == JOIN_LIMIT


async def test_a_shim_that_no_start_has_joined_ends_at_once(autojump_clock: MockClock) -> None:
    async with watched(30) as (service, _):
        await join(service)
        await trio.sleep(JOIN_LIMIT)
        await connect(service, ConnectRequest(id="c"))
        await connect(service, ConnectRequest())
        await shut_down(service)
        assert service.containers.shutdown.is_set()


async def test_the_last_cancelled_creates_are_remembered_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(creations, "_CANCELLED", 3)
    async with watched(30) as (service, _):
        service.containers.reserve("another")
        for number in range(5):
            request = CreateTaskRequest(id=f"c{number}", bundle=str(tmp_path / "none"))
            stream = Stream[CreateTaskRequest, CreateTaskResponse](request, {})
            stream.lost = True
            with suppress(ShimError):
                await service.Create(stream)
        found = []
        for number in range(5):
            request_ = ConnectRequest(id=f"c{number}")
            try:
                await service.Connect(Stream[ConnectRequest, ConnectResponse](request_, {}))
            except NotFoundError:
                found.append(number)
        assert found == [2, 3, 4]
