"""The Task API: one short method each.  What it means is in ``shim.container``.

Source: containerd api/runtime/task/v3/shim.proto; v2 differs in its name only.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from shim import log
from shim.api import process_pb2
from shim.api.options_pb2 import ProcessDetails
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
from shim.container.announce import NO_TIME
from shim.container.container import Container
from shim.container.lifecycle import State
from shim.errors import ExistsError, NotFoundError, UnavailableError
from shim.ttrpc.server import Stream, unary
from shim.version import VERSION

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from shim.container.host import Host
    from shim.container.process import Process

# The names one service is registered under, besides its own.
ALIASES = {"containerd.task.v3.Task": "containerd.task.v2.Task"}
# Seconds a Shutdown waits for a creation it has called off: containerd gives it three.
_UNDO_LIMIT = 2.5
# Methods nobody needs once their caller is gone.
CANCELLABLE = ("Wait",)
# Methods that are called off, and undone, when their caller's connection ends.  A manager
# that restarts takes a container that it was never told of for a leak: containerd
# deletes it, and with it the fifos that its next attempt needs.  What is not here or
# above goes on, and is reported as what came of it: half a Start cannot be undone.
UNDOABLE = ("Create",)
# Methods that wait for nothing at all.
IMMEDIATE = ("State", "Pids", "Connect", "Stats", "Exec", "CloseIO", "ResizePty")

_STATUS = {
    State.CREATED: process_pb2.CREATED,
    State.RUNNING: process_pb2.RUNNING,
    State.PAUSED: process_pb2.PAUSED,
    State.STOPPED: process_pb2.STOPPED,
    State.DELETED: process_pb2.STOPPED,
}


class _Creation:
    """A Create under way.  ``over`` is set when it has succeeded, or is undone."""

    def __init__(self, stream: Stream[CreateTaskRequest, CreateTaskResponse]) -> None:
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self._stream = stream

    @property
    def is_cancelled(self) -> bool:
        """Whether its caller is gone, or a Shutdown ends it."""
        return self._stream.lost or self.scope.cancel_called


class TaskService(TaskBase):
    """The containers of one daemon.  Sets ``shutdown`` when asked to and none is left."""

    def __init__(self, host: Host, shutdown: trio.Event) -> None:
        self._host = host
        self._shutdown = shutdown
        # None while the container is being created: the id is taken already.
        self._containers: dict[str, Container | None] = {}
        self._in_use = trio.Event()
        self._unused = trio.Event()
        self._creating: dict[str, _Creation] = {}
        self._waiting = 0  # creations that wait for another's end
        self._cancelled: set[str] = set()  # ids whose last creation was called off

    async def wait_unused(self, seconds: float) -> None:
        """Return when there has been no container for ``seconds``.

        No manager leaves a shim empty for long but one that died between two
        steps.  containerd 1.6 then holds on to the empty shim for ever, and its
        id is taken until that ends.
        """
        while True:
            with trio.move_on_after(seconds) as scope:
                await self._in_use.wait()
            if scope.cancelled_caught:
                return
            await self._unused.wait()

    def _reserve(self, id_: str) -> None:
        if id_ in self._containers:
            raise ExistsError(f"container {id_} already exists in this shim")
        if not self._containers:  # who waits, waits for the end of this occupation
            self._unused = trio.Event()
        self._containers[id_] = None
        self._in_use.set()

    def _release(self, id_: str) -> None:
        del self._containers[id_]
        if not self._containers:
            self._unused.set()
            self._in_use = trio.Event()

    def _container(self, id_: str) -> Container:
        container = self._containers.get(id_)
        if container is None:
            raise NotFoundError(f"container {id_} does not exist in this shim: not found")
        return container

    def _process(self, id_: str, exec_id: str) -> Process:
        return self._container(id_).process(exec_id)

    @unary
    async def State(self, request: StateRequest) -> StateResponse:
        container = self._container(request.id)
        process = container.process(request.exec_id)
        process.look_for_readers()
        reply = StateResponse(
            id=process.id or container.id,
            bundle=str(container.bundle.path),
            pid=process.pid,
            status=_STATUS[container.state_of(process)],
            stdin=process.spec.stdin,
            stdout=process.spec.stdout,
            stderr=process.spec.stderr,
            terminal=process.spec.terminal,
            exec_id=process.id,
        )
        if process.exit is not None:
            reply.exit_status = process.exit.status
        _stamp(reply.exited_at, process.exit.at if process.exit is not None else 0)
        return reply

    async def Create(self, stream: Stream[CreateTaskRequest, CreateTaskResponse]) -> None:
        request = await stream.recv_message()
        assert request is not None  # nobody received it before us
        await self._wait_undone(request.id)
        if self._shutdown.is_set():
            raise UnavailableError("this shim is ending; start another")
        self._reserve(request.id)
        self._cancelled.discard(request.id)
        creation = _Creation(stream)
        self._creating[request.id] = creation
        with creation.scope:
            try:
                container = await Container.create(request, self._host)
            except BaseException:
                self._release(request.id)
                if creation.is_cancelled:
                    self._cancelled.add(request.id)
                raise
            finally:
                del self._creating[request.id]
                creation.ended.set()
                # However it failed: the manager that is gone does not ask for the end
                # of the shim, and the one that asked for it does not ask again.
                if creation.is_cancelled and not self._containers and not self._waiting:
                    self._shutdown.set()
            self._containers[request.id] = container
            await stream.send_message(CreateTaskResponse(pid=container.init.pid))
            return
        raise UnavailableError(f"container {request.id} was given up while it was created")

    async def _wait_undone(self, id_: str) -> None:
        """Wait for the end of a creation of ``id_`` that was called off."""
        creation = self._creating.get(id_)
        if creation is None or not creation.is_cancelled:
            return
        self._waiting += 1
        try:
            await creation.ended.wait()
        finally:
            self._waiting -= 1

    @unary
    async def Start(self, request: StartRequest) -> StartResponse:
        return StartResponse(pid=await self._container(request.id).start(request.exec_id))

    @unary
    async def Delete(self, request: DeleteRequest) -> DeleteResponse:
        pid, exit_ = await self._container(request.id).delete(request.exec_id)
        if not request.exec_id:
            self._release(request.id)
        reply = DeleteResponse(pid=pid, exit_status=exit_.status)
        _stamp(reply.exited_at, exit_.at)
        return reply

    @unary
    async def Pids(self, request: PidsRequest) -> PidsResponse:
        container = self._container(request.id)
        execs = {process.pid: process.id for process in container.execs.values() if process.pid}
        reply = PidsResponse()
        for pid in container.pids():
            info = reply.processes.add(pid=pid)
            if pid in execs:
                info.info.CopyFrom(_details(execs[pid]))
        return reply

    @unary
    async def Pause(self, request: PauseRequest) -> Empty:
        await self._container(request.id).pause()
        return Empty()

    @unary
    async def Resume(self, request: ResumeRequest) -> Empty:
        await self._container(request.id).resume()
        return Empty()

    @unary
    async def Checkpoint(self, request: CheckpointTaskRequest) -> Empty:
        await self._container(request.id).checkpoint(request)
        return Empty()

    @unary
    async def Kill(self, request: KillRequest) -> Empty:
        container = self._container(request.id)
        await container.kill(request.exec_id, request.signal, all_=request.all)
        return Empty()

    @unary
    async def Exec(self, request: ExecProcessRequest) -> Empty:
        self._container(request.id).add_exec(request)
        return Empty()

    @unary
    async def ResizePty(self, request: ResizePtyRequest) -> Empty:
        self._process(request.id, request.exec_id).resize(request.width, request.height)
        return Empty()

    @unary
    async def CloseIO(self, request: CloseIORequest) -> Empty:
        process = self._process(request.id, request.exec_id)
        if request.stdin:
            process.close_stdin()
        return Empty()

    @unary
    async def Update(self, request: UpdateTaskRequest) -> Empty:
        await self._container(request.id).update(request.resources)
        return Empty()

    @unary
    async def Wait(self, request: WaitRequest) -> WaitResponse:
        process = self._process(request.id, request.exec_id)
        process.look_for_readers()
        exit_ = await process.wait()
        reply = WaitResponse(exit_status=exit_.status)
        _stamp(reply.exited_at, exit_.at)
        return reply

    @unary
    async def Stats(self, request: StatsRequest) -> StatsResponse:
        return StatsResponse(stats=self._container(request.id).stats())

    @unary
    async def Connect(self, request: ConnectRequest) -> ConnectResponse:
        creation = self._creating.get(request.id)
        if request.id in self._cancelled or (creation is not None and creation.is_cancelled):
            # containerd 1.6 takes any other answer for that of a container it still has.
            raise NotFoundError(f"the creation of {request.id} was called off: not found")
        container = self._containers.get(request.id)
        pid = container.init.pid if container is not None else 0
        return ConnectResponse(shim_pid=os.getpid(), task_pid=pid, version=VERSION)

    @unary
    async def Shutdown(self, request: ShutdownRequest) -> Empty:
        if request.id in self._creating:
            # A manager that came back does not wait for what another asked for.
            creation = self._creating[request.id]
            creation.scope.cancel()
            # It cleans up once it has our answer, and what the runtime still
            # makes then would stay.
            with trio.move_on_after(_UNDO_LIMIT):
                await creation.ended.wait()
        elif self._containers:
            log.debug("not shutting down: containers are left", count=len(self._containers))
        else:
            self._shutdown.set()
        return Empty()


def _details(exec_id: str) -> AnyMessage:
    details = ProcessDetails(exec_id=exec_id)
    return AnyMessage(
        type_url=ProcessDetails.DESCRIPTOR.full_name, value=details.SerializeToString()
    )


def _stamp(field: Timestamp, nanoseconds: int) -> None:
    """Fill ``field``; no time is year 1, Go's zero time: clients read an absent one as 1970."""
    if nanoseconds:
        field.FromNanoseconds(nanoseconds)
    else:
        field.seconds = NO_TIME
