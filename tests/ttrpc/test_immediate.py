"""Methods that wait for nothing, and replies that leave in the turn they are made."""

from __future__ import annotations

import dis
import socket
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api.task_grpc import TaskStub
from shim.api.task_pb2 import (
    CreateTaskRequest,
    StartRequest,
    StateRequest,
    StateResponse,
    WaitRequest,
)
from shim.errors import MustWaitError
from shim.service import IMMEDIATE, TaskService
from shim.ttrpc import wire_pb2
from shim.ttrpc.client import open_channel
from shim.ttrpc.frames import Frame, Kind
from shim.ttrpc.protocol import ClientProtocol
from shim.ttrpc.server import handlers_of, serve_connection, unary
from tests.ttrpc.fake import FakeTask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def served(service: FakeTask, *immediate: str) -> AsyncIterator[trio.SocketStream]:
    """Serve on a real socket; give the peer's end."""
    ours, theirs = trio.socket.socketpair()
    for end in (ours, theirs):  # a few kilobytes: a reply of any size is taken in pieces
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    serving = partial(
        serve_connection,
        trio.SocketStream(theirs),
        handlers=handlers_of(service),
        cancellable=("Wait",),
        immediate=immediate,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serving)
        async with trio.SocketStream(ours) as stream:
            yield stream


def state_call(stream_id: int, id_: str) -> bytes:
    payload = StateRequest(id=id_).SerializeToString()
    request = wire_pb2.Request(service="containerd.task.v3.Task", method="State", payload=payload)
    return Frame(stream_id, Kind.REQUEST, request.SerializeToString()).encode()


@pytest.mark.parametrize("immediate", [("State",), ()], ids=["in the reader", "in tasks"])
async def test_replies_come_whole_and_once_whatever_the_socket_takes(
    immediate: tuple[str, ...],
) -> None:
    """To a peer that first does not read at all and then slowly."""
    service = FakeTask()
    service.reply_size = 700
    protocol, ids = ClientProtocol(), list[str]()
    expected = [f"c{n}" for n in range(300)]
    async with served(service, *immediate) as stream, trio.open_nursery() as nursery:
        calls = b"".join(state_call(2 * n + 1, id_) for n, id_ in enumerate(expected))
        nursery.start_soon(stream.send_all, calls)
        await trio.testing.wait_all_tasks_blocked()
        while len(ids) < 300:
            replies = protocol.receive_data(await stream.receive_some(1000))
            ids += [StateResponse.FromString(reply.payload).id for reply in replies]
    if immediate:
        assert ids == expected, "what is done in order is answered in order"
    assert sorted(ids) == sorted(expected)


async def test_a_reply_of_megabytes_arrives_whole() -> None:
    service = FakeTask()
    service.reply_size = 2 << 20
    async with served(service, "State") as stream, open_channel(stream) as channel:
        reply = await TaskStub(channel).State(StateRequest(id="c1"), timeout=20)
    assert reply.stdout == "x" * service.reply_size


async def test_a_failure_of_an_immediate_method_has_its_own_status() -> None:
    async with served(FakeTask(), "Start") as stream, open_channel(stream) as channel:
        stub = TaskStub(channel)
        with pytest.raises(GRPCError) as caught:
            await stub.Start(StartRequest(id="c1"), timeout=5)
        assert caught.value.status is Status.NOT_FOUND
        assert (await stub.State(StateRequest(id="c1"), timeout=5)).id == "c1"


async def test_a_method_that_waits_though_it_is_called_immediate_costs_its_own_call() -> None:
    async with served(FakeTask(), "Wait") as stream, open_channel(stream) as channel:
        stub = TaskStub(channel)
        with pytest.raises(GRPCError, match="Wait is immediate, but suspends"):
            await stub.Wait(WaitRequest(id="c1"), timeout=5)
        assert (await stub.State(StateRequest(id="c1"), timeout=5)).id == "c1"


class WaitingTask(FakeTask):
    """Its State of the container c1 must wait until ``ready`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.ready = trio.Event()

    @unary
    async def State(self, request: StateRequest) -> StateResponse:
        if request.id == "c1" and not self.ready.is_set():
            raise MustWaitError(self.ready.wait)
        return StateResponse(id=request.id)


async def test_an_immediate_method_that_must_wait_is_called_again_after_that() -> None:
    service = WaitingTask()
    async with served(service, "State") as stream, open_channel(stream) as channel:
        stub = TaskStub(channel)
        ids: list[str] = []

        async def call(id_: str) -> None:
            ids.append((await stub.State(StateRequest(id=id_), timeout=5)).id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, "c1")
            await trio.testing.wait_all_tasks_blocked()
            await call("c2")
            service.ready.set()
        assert ids == ["c2", "c1"]


async def test_an_immediate_method_is_answered_while_others_wait() -> None:
    service = FakeTask()
    async with served(service, "State") as stream, open_channel(stream) as channel:
        stub = TaskStub(channel)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(stub.Create, CreateTaskRequest(id="c1")))
            nursery.start_soon(partial(stub.Wait, WaitRequest(id="c1")))
            await service.creating.wait()
            await service.waiting.wait()
            assert (await stub.State(StateRequest(id="c1"), timeout=5)).id == "c1"
            service.may_create.set()
            service.may_exit.set()


async def test_a_peer_that_left_before_its_reply_harms_nobody() -> None:
    """The write fails in the turn of the request; the connection ends as if it had not."""
    for _ in range(100):
        async with served(FakeTask(), "State") as stream:
            await stream.send_all(state_call(1, "c1") + state_call(3, "c1"))


@pytest.mark.parametrize("name", IMMEDIATE)
def test_no_method_called_immediate_awaits_anything(name: str) -> None:
    body = getattr(TaskService, name).__wrapped__
    assert not [step for step in dis.get_instructions(body) if step.opname == "GET_AWAITABLE"]
