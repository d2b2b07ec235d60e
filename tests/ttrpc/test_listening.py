"""A server that listens on a socket: its shutdown, and the peers that it refuses."""

from __future__ import annotations

import os
import socket
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from grpclib.const import Status

from shim.api.task_grpc import TaskStub
from shim.api.task_pb2 import (
    CreateTaskRequest,
    CreateTaskResponse,
    ShutdownRequest,
    WaitRequest,
    WaitResponse,
)
from shim.ttrpc.client import ConnectionLostError, open_channel
from shim.ttrpc.server import (
    PeerRefusedError,
    check_peer,
)
from tests.ttrpc.fake import FakeTask, Listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from trio.testing import MockClock


@pytest.fixture
async def listening(tmp_path: Path) -> AsyncIterator[Listening]:
    server = Listening(str(tmp_path / "s"), FakeTask())
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(server.run, drain=3600))  # s; nothing may come to that
        with trio.fail_after(10):
            yield server
        server.service.shutdown.set()


async def test_shutdown_answers_its_own_call_and_ends_idle_connections(
    listening: Listening,
) -> None:
    idle = await trio.open_unix_socket(listening.path)
    async with idle, open_channel(await trio.open_unix_socket(listening.path)) as channel:
        await TaskStub(channel).Shutdown(ShutdownRequest())
        await channel.wait_lost()
        assert await idle.receive_some() == b""
    await listening.stopped.wait()
    with pytest.raises(OSError, match="refused"):
        await trio.open_unix_socket(listening.path)


async def test_what_runs_at_shutdown_ends_and_is_answered(listening: Listening) -> None:
    async def create(stub: TaskStub) -> None:
        assert await stub.Create(CreateTaskRequest()) == CreateTaskResponse(pid=7)

    async def wait(stub: TaskStub) -> None:
        with pytest.raises(ConnectionLostError):
            await stub.Wait(WaitRequest())

    service = listening.service
    stream = await trio.open_unix_socket(listening.path)
    async with open_channel(stream) as channel, trio.open_nursery() as calls:
        calls.start_soon(create, TaskStub(channel))
        calls.start_soon(wait, TaskStub(channel))
        await service.creating.wait()
        await service.waiting.wait()
        service.shutdown.set()
        await service.wait_abandoned.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert not listening.stopped.is_set()
        service.may_create.set()
    await listening.stopped.wait()


async def test_what_runs_on_after_shutdown_is_cancelled(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    server = Listening(str(tmp_path / "s"), FakeTask())
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(server.run, drain=30))
        async with open_channel(await trio.open_unix_socket(server.path)) as channel:
            nursery.start_soon(_fails, TaskStub(channel))
            await server.service.creating.wait()
            server.service.shutdown.set()
            await server.stopped.wait()
            assert trio.current_time() == pytest.approx(30, abs=0.1)
            await channel.wait_lost()
    assert not server.service.created.is_set()


async def _fails(stub: TaskStub) -> None:
    with pytest.raises(ConnectionLostError):
        await stub.Create(CreateTaskRequest())


async def test_a_finished_wait_is_answered(listening: Listening) -> None:
    async with open_channel(await trio.open_unix_socket(listening.path)) as channel:
        listening.service.may_exit.set()
        assert await TaskStub(channel).Wait(WaitRequest()) == WaitResponse(exit_status=137)


async def test_our_own_processes_are_served() -> None:
    left, right = trio.socket.socketpair()
    with left, right:
        check_peer(left)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("become", [os.seteuid, os.setegid])
async def test_a_peer_of_another_user_or_group_is_refused(
    become: Callable[[int], None], logged: Path
) -> None:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            # An abstract name: another user may not enter the test's directory.
            server = Listening(f"\0trio-shim-test-{os.getpid()}", FakeTask())
            await nursery.start(partial(server.run, drain=5))
            refused = socket.socket(socket.AF_UNIX)
            become(65534)
            try:
                refused.connect(server.path)
            finally:
                become(0)
            async with trio.SocketStream(trio.socket.from_stdlib_socket(refused)) as stream:
                assert await stream.receive_some() == b""
            async with open_channel(await trio.open_unix_socket(server.path)) as channel:
                await TaskStub(channel).Shutdown(ShutdownRequest())
    text = logged.read_text()
    assert text.count('msg="connection refused"') == 1
    assert "65534" in text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_the_refusal_says_what_to_do() -> None:
    os.seteuid(65534)
    try:
        left, right = trio.socket.socketpair()
    finally:
        os.seteuid(0)
    with left, right, pytest.raises(PeerRefusedError, match="call as that user") as caught:
        check_peer(left)
    assert caught.value.status is Status.PERMISSION_DENIED
