"""A task service for the tests of the transport, and ways to serve it."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio
from google.protobuf.empty_pb2 import Empty

from shim.api.task_grpc import TaskBase
from shim.api.task_pb2 import (
    CheckpointTaskRequest,
    CloseIORequest,
    ConnectRequest,
    ConnectResponse,
    CreateTaskRequest,
    CreateTaskResponse,
    DeleteRequest,
    DeleteResponse,
    ExecProcessRequest,
    KillRequest,
    PauseRequest,
    PidsRequest,
    PidsResponse,
    ResizePtyRequest,
    ResumeRequest,
    ShutdownRequest,
    StartRequest,
    StartResponse,
    StateRequest,
    StateResponse,
    StatsRequest,
    StatsResponse,
    UpdateTaskRequest,
    WaitRequest,
    WaitResponse,
)
from shim.errors import NotFoundError, UnsupportedError, WrongStateError
from shim.ttrpc import wire_pb2
from shim.ttrpc.client import Channel, open_channel
from shim.ttrpc.frames import Frame, Kind
from shim.ttrpc.server import Servable, Stream, handlers_of, serve, serve_connection, unary

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

V3_AS_V2 = {"containerd.task.v3.Task": "containerd.task.v2.Task"}


class FakeTask(TaskBase):
    """State echoes; Create, Wait and Start of "slow" last until an event is set; the rest
    fails.
    """

    def __init__(self) -> None:
        self.states = 0
        self.creating = trio.Event()
        self.may_create = trio.Event()
        self.created = trio.Event()
        self.undone: list[bool] = []  # for each Create that was cancelled: was its caller lost?
        self.starting = trio.Event()
        self.may_start = trio.Event()
        self.started = trio.Event()
        self.waiting = trio.Event()
        self.may_exit = trio.Event()
        self.wait_abandoned = trio.Event()
        self.shutdown = trio.Event()
        self.metadata: dict[str, list[str]] = {}
        self.deadline = 0.0
        self.reply_size = 0

    @unary
    async def State(self, request: StateRequest) -> StateResponse:
        self.states += 1
        return StateResponse(id=request.id, pid=1, stdout="x" * self.reply_size)

    async def Create(self, stream: Stream[CreateTaskRequest, CreateTaskResponse]) -> None:
        self.creating.set()
        try:
            await self.may_create.wait()
        except trio.Cancelled:
            self.undone.append(stream.lost)
            raise
        self.created.set()
        await stream.send_message(CreateTaskResponse(pid=7))

    @unary
    async def Wait(self, request: WaitRequest) -> WaitResponse:
        self.waiting.set()
        try:
            await self.may_exit.wait()
        except trio.Cancelled:
            self.wait_abandoned.set()
            raise
        return WaitResponse(exit_status=137)

    @unary
    async def Kill(self, request: KillRequest) -> Empty:
        return Empty()

    @unary
    async def Start(self, request: StartRequest) -> StartResponse:
        if request.id == "slow":
            self.starting.set()
            await self.may_start.wait()
            self.started.set()
            return StartResponse(pid=7)
        raise NotFoundError(f"container {request.id} does not exist")

    @unary
    async def Delete(self, request: DeleteRequest) -> DeleteResponse:
        raise WrongStateError("cannot delete a running process")

    @unary
    async def Pids(self, request: PidsRequest) -> PidsResponse:
        raise ValueError("a bug")

    @unary
    async def Stats(self, request: StatsRequest) -> StatsResponse:
        raise FileNotFoundError(2, "No such file or directory", "/sys/fs/cgroup/\udcff")

    @unary
    async def Shutdown(self, request: ShutdownRequest) -> Empty:
        self.shutdown.set()
        return Empty()

    # The plain form that grpclib's own services have.
    async def Connect(self, stream: Stream[ConnectRequest, ConnectResponse]) -> None:
        self.metadata = stream.metadata
        self.deadline = stream.deadline
        assert await stream.recv_message() is not None
        assert await stream.recv_message() is None
        await stream.send_message(ConnectResponse(shim_pid=1))

    async def Pause(self, stream: Stream[PauseRequest, Empty]) -> None:
        pass  # forgets its reply

    async def Resume(self, stream: Stream[ResumeRequest, Empty]) -> None:
        await stream.send_message(Empty())
        raise WrongStateError("not paused after all")

    async def Update(self, stream: Stream[UpdateTaskRequest, Empty]) -> None:
        await stream.send_message(Empty())
        await stream.send_message(Empty())

    @unary
    async def Exec(self, request: ExecProcessRequest) -> Empty:
        async with trio.open_nursery():
            raise NotFoundError("raised beside other tasks")

    @unary
    async def Checkpoint(self, request: CheckpointTaskRequest) -> Empty:
        raise UnsupportedError("no criu")

    @unary
    async def ResizePty(self, request: ResizePtyRequest) -> Empty:
        raise ExceptionGroup("two bugs", [ValueError("one"), NotFoundError("two")])

    @unary
    async def CloseIO(self, request: CloseIORequest) -> Empty:
        return Empty()


def sockets_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Return the two ends of a connection, as a server accepts it."""
    theirs, ours = trio.socket.socketpair()
    return trio.SocketStream(theirs), trio.SocketStream(ours)


class Listening:
    """A server on a separate socket."""

    def __init__(self, path: str, service: FakeTask, *others: Servable) -> None:
        self.path = path
        self.service = service
        self.handlers = handlers_of(service, *others)
        self.stopped = trio.Event()

    async def run(self, *, drain: float, task_status: trio.TaskStatus[None]) -> None:
        sock = trio.socket.socket(socket.AF_UNIX)
        await sock.bind(self.path)
        sock.listen()
        await serve(
            trio.SocketListener(sock),
            self.handlers,
            shutdown=self.service.shutdown,
            drain=drain,
            cancellable={"Wait"},
            task_status=task_status,
        )
        self.stopped.set()


@asynccontextmanager
async def connected(service: FakeTask) -> AsyncIterator[Channel]:
    """Serve ``service`` to a channel for the block."""
    theirs, ours = sockets_pair()
    handlers = handlers_of(service, aliases=V3_AS_V2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(serve_connection, theirs, handlers=handlers, cancellable={"Wait"})
        )
        async with open_channel(ours) as channel:
            yield channel


def raw_call(stream_id: int, method: str, payload: bytes = b"", timeout_nano: int = 0) -> bytes:
    request = wire_pb2.Request(
        service="containerd.task.v3.Task",
        method=method,
        payload=payload,
        timeout_nano=timeout_nano,
    )
    return Frame(stream_id, Kind.REQUEST, request.SerializeToString()).encode()
