"""The end of a connection under the server's calls, and peers that read slowly or not at all."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from shim.api.task_pb2 import (
    CreateTaskResponse,
    StartRequest,
    StateRequest,
)
from shim.ttrpc.protocol import ClientProtocol, ServerProtocol
from shim.ttrpc.server import (
    UNSENT_LIMIT,
    handlers_of,
    serve_connection,
)
from tests.ttrpc.fake import FakeTask, raw_call, sockets_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Container
    from pathlib import Path


@asynccontextmanager
async def three_calls_under_way(
    service: FakeTask, *, undoable: Container[str], shutdown: trio.Event | None = None
) -> AsyncIterator[tuple[trio.SocketStream, trio.Event]]:
    """Serve a Wait, a Create and a Start that last; give the peer's end, and the event that is
    set afterwards.
    """
    theirs, ours = sockets_pair()
    ended = trio.Event()

    async def serve_one() -> None:
        await serve_connection(
            theirs,
            handlers=handlers_of(service),
            cancellable={"Wait"},
            undoable=undoable,
            shutdown=shutdown,
        )
        ended.set()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_one)
            slow = StartRequest(id="slow").SerializeToString()
            await ours.send_all(raw_call(1, "Wait") + raw_call(3, "Create"))
            await ours.send_all(raw_call(5, "Start", slow))
            await service.waiting.wait()
            await service.creating.wait()
            await service.starting.wait()
            yield ours, ended


@pytest.mark.parametrize("way", ["closed", "half closed", "reset"])
async def test_a_lost_manager_calls_off_its_create_and_not_its_start(way: str) -> None:
    service = FakeTask()
    async with three_calls_under_way(service, undoable={"Create"}) as (ours, ended):
        if way == "half closed":
            await ours.send_eof()
        if way == "reset":  # the peer of a socket that is closed with something to read
            await ours.send_all(raw_call(7, "State"))
            await trio.testing.wait_all_tasks_blocked()
        if way != "half closed":
            await ours.aclose()
        await service.wait_abandoned.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert service.undone == [True]
        assert not service.started.is_set()
        assert not ended.is_set()
        service.may_start.set()
        await ended.wait()
        await ours.aclose()
    assert service.started.is_set()
    assert not service.created.is_set()


async def test_a_lost_manager_calls_off_nothing_that_is_not_named() -> None:
    service = FakeTask()
    async with three_calls_under_way(service, undoable=()) as (ours, ended):
        await ours.aclose()
        await service.wait_abandoned.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert service.undone == []
        service.may_create.set()
        service.may_start.set()
        await ended.wait()
    assert service.created.is_set()
    assert service.started.is_set()


async def test_a_shutdown_lets_a_create_finish_and_sends_its_answer() -> None:
    service, shutdown = FakeTask(), trio.Event()
    async with three_calls_under_way(service, undoable={"Create"}, shutdown=shutdown) as (ours, _):
        shutdown.set()
        await service.wait_abandoned.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert service.undone == []
        service.may_create.set()
        [reply] = ClientProtocol().receive_data(await ours.receive_some())
        assert CreateTaskResponse.FromString(reply.payload).pid == 7
        service.may_start.set()
        await ours.aclose()


async def test_a_peer_that_cannot_be_written_to_any_more_calls_off_its_create() -> None:
    """The reader is held at the limit of unread replies: only the writer sees the end."""
    service = FakeTask()
    service.reply_size = 2 << 20
    async with three_calls_under_way(service, undoable={"Create"}) as (ours, ended):
        await ours.send_all(raw_call(7, "State"))
        await trio.testing.wait_all_tasks_blocked()
        await ours.aclose()
        service.may_start.set()
        await ended.wait()
    assert service.undone == [True]


async def test_a_frame_cut_off_by_the_end_is_dropped() -> None:
    service = FakeTask()
    theirs, ours = sockets_pair()
    await ours.send_all(raw_call(1, "State")[:-1])
    await ours.aclose()
    await serve_connection(theirs, handlers=handlers_of(service))
    assert service.states == 0


async def test_cancelling_the_server_cancels_everything() -> None:
    service = FakeTask()
    theirs, ours = sockets_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve_connection, theirs, handlers=handlers_of(service)))
        await ours.send_all(raw_call(1, "Wait") + raw_call(3, "Create"))
        await service.creating.wait()
        await service.waiting.wait()
        nursery.cancel_scope.cancel()
    assert service.wait_abandoned.is_set()
    assert not service.created.is_set()
    assert await ours.receive_some() == b""
    await ours.aclose()


async def test_a_peer_that_does_not_read_is_held_and_loses_nothing() -> None:
    service = FakeTask()
    service.reply_size = 10_000
    request = StateRequest(id="redis").SerializeToString()
    left, right = trio.socket.socketpair()
    ours = trio.SocketStream(right)
    calls = 1000

    async def ask() -> None:
        for number in range(calls):
            await ours.send_all(raw_call(2 * number + 1, "State", request))

    async with trio.open_nursery() as nursery:
        handlers = handlers_of(service)
        nursery.start_soon(partial(serve_connection, trio.SocketStream(left), handlers=handlers))
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked(0.05)
        held = service.states
        protocol, answered = ClientProtocol(), set[int]()
        while len(answered) < calls:
            responses = protocol.receive_data(await ours.receive_some())
            answered.update(response.stream_id for response in responses)
        await ours.aclose()
    # The first limit, the bytes of one read, and those in the kernel.
    assert UNSENT_LIMIT // 10_000 <= held < calls
    assert service.states == calls


async def test_a_peer_that_stops_reading_and_goes_does_not_keep_the_server() -> None:
    service = FakeTask()
    service.reply_size = 1_000_000
    left, right = trio.socket.socketpair()
    ours = trio.SocketStream(right)
    async with trio.open_nursery() as nursery:
        handlers = handlers_of(service)
        nursery.start_soon(partial(serve_connection, trio.SocketStream(left), handlers=handlers))
        for number in range(5):
            await ours.send_all(raw_call(2 * number + 1, "State"))
        await trio.testing.wait_all_tasks_blocked(0.05)
        await ours.aclose()


async def test_a_bug_in_reading_a_connection_calls_off_its_create_and_not_its_start(
    logged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = FakeTask()
    async with three_calls_under_way(service, undoable={"Create"}) as (ours, ended):
        monkeypatch.setattr(ServerProtocol, "receive_data", lambda *_: 1 // 0)
        await ours.send_all(b"any")
        await service.wait_abandoned.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert service.undone == [True]
        assert not ended.is_set()
        service.may_start.set()
        await ended.wait()
        await ours.aclose()
    assert service.started.is_set()
    assert 'msg="connection failed"' in logged.read_text()
