"""Servers of one socket, each of which replaces one that ended as if it were killed.

:class:`Generations` runs them in this process, beside a keeper that has their deposits; the
service of each notes which calls may be repetitions.
"""

from __future__ import annotations

import os
import socket
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from google.protobuf.empty_pb2 import Empty

from shim.api.task_grpc import TaskStub
from shim.api.task_pb2 import (
    CreateTaskRequest,
    CreateTaskResponse,
    KillRequest,
    StartRequest,
    StartResponse,
    StateRequest,
    StateResponse,
)
from shim.recovery.connections import Connections
from shim.recovery.deposit import Deposit
from shim.recovery.inherited import Inherited
from shim.ttrpc.client import open_channel
from shim.ttrpc.protocol import ClientProtocol
from shim.ttrpc.server import Stream, handlers_of, recorded, replayable, serve
from tests.recovery.keeper import Keeper
from tests.ttrpc.fake import FakeTask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TASK = "containerd.task.v3.Task"


class Told(FakeTask):
    """Notes which calls may be repetitions; Create and Wait last until an event is set."""

    def __init__(self) -> None:
        super().__init__()
        self.replayed: list[tuple[str, bool]] = []

    @replayable
    async def State(self, request: StateRequest, replayed: bool) -> StateResponse:
        self.replayed.append(("State", replayed))
        return StateResponse(id=request.id, stdout="x" * self.reply_size)

    @replayable
    async def Start(self, request: StartRequest, replayed: bool) -> StartResponse:
        self.replayed.append(("Start", replayed))
        await self.may_start.wait()
        return StartResponse(pid=len(request.id))

    @recorded
    async def Kill(self, request: KillRequest, call: Stream[KillRequest, Empty]) -> Empty:
        if request.id not in ("begun", "not begun"):
            return Empty()
        self.replayed.append((request.id, call.begun))
        if request.id == "begun":
            call.begin()
        await self.may_start.wait()
        return Empty()

    async def Create(self, stream: Stream[CreateTaskRequest, CreateTaskResponse]) -> None:
        self.replayed.append(("Create", stream.replayed))
        await super().Create(stream)


class Generations:
    """A server in this process that can end as if it were killed, and its keeper."""

    def __init__(self, path: str, nursery: trio.Nursery) -> None:
        self.path = path
        self.service = Told()
        self.reply_size = 0  # of the services that are started from now on
        self.keeper: Keeper | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    async def start(self) -> None:
        """Start a server; it goes on with what the last one has left."""
        self.service = Told()
        self.service.reply_size = self.reply_size
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if self.keeper is None:
            self.keeper = Keeper(ours)
        else:
            self.keeper.follow(ours)
        inherited = Inherited({name: os.dup(fd) for name, fd in self.keeper.fds.items()})
        deposit = Deposit(theirs, inherited=inherited.fds)
        store = Connections(deposit)
        serving = partial(
            serve,
            trio.SocketListener(trio.socket.from_stdlib_socket(self._listener.dup())),
            handlers_of(self.service),
            shutdown=self.service.shutdown,
            drain=5,
            cancellable=("Wait",),
            undoable=("Create",),
            immediate=("State",),
            store=store,
            resumed=store.resume(inherited),
        )

        async def run(task_status: trio.TaskStatus[None]) -> None:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(deposit.run)
                    await serving(task_status=task_status)
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.cancel_scope.cancel()
            deposit.close()
            self._ended.set()

        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        await self._nursery.start(run)

    async def kill(self) -> None:
        """End the server so that no reply is sent and nothing is taken from the deposit."""
        self._scope.cancel()
        await self._ended.wait()
        self.names()

    async def replace(self) -> Told:
        """Replace the server; return the service of the new one."""
        await self.kill()
        await self.start()
        return self.service

    def names(self) -> set[str]:
        """Return the names of the fds that the keeper has."""
        assert self.keeper is not None
        self.keeper.take()
        return set(self.keeper.fds)

    def close(self) -> None:
        self._listener.close()
        assert self.keeper is not None
        self.keeper.close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Generations]:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            generations = Generations(str(tmp_path / "s"), nursery)
            await generations.start()
            yield generations
            await generations.kill()
    generations.close()


@asynccontextmanager
async def client(server: Generations) -> AsyncIterator[TaskStub]:
    async with open_channel(await trio.open_unix_socket(server.path)) as channel:
        yield TaskStub(channel)


async def settled(server: Generations) -> set[str]:
    """Return the names in the deposit once nothing happens any more."""
    await trio.testing.wait_all_tasks_blocked(0.02)
    return server.names()


def frame(number: int, method: str, request: Any) -> bytes:
    protocol = ClientProtocol()
    for _ in range(number):
        _, data = protocol.encode_request(TASK, method, request.SerializeToString())
    return data
