"""The Task API: one short method for each call.  ``shim.container`` does the work.

Source: containerd api/runtime/task/v3/shim.proto; v2 differs only in its name.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from shim import log, names
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
from shim.container.container import Container
from shim.container.containers import Containers
from shim.container.continued import Continued
from shim.container.lifecycle import State
from shim.container.task_events import ZERO_TIME
from shim.counters import COUNTERS
from shim.errors import NotFoundError, UnavailableError
from shim.exit import NEVER_STARTED
from shim.ttrpc.server import Stream, recorded, replayable, unary
from shim.version import VERSION

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from shim.container.host import Host
    from shim.container.process import Process
    from shim.recovery.inherited import Inherited

# Further names under which the service is registered.
ALIASES = {"containerd.task.v3.Task": "containerd.task.v2.Task"}
# Seconds that a Shutdown waits for a Create that it has cancelled: containerd's timeout
# for a Shutdown is three.
_UNDO_LIMIT = 2.5
# Methods that are cancelled when their caller's connection ends.
CANCELLABLE = ("Wait",)
# Methods that are cancelled and undone when their caller's connection ends.  containerd
# handles a container as a leak if it restarted before Create replied: it deletes the
# container, and with it the fifos that its next attempt needs.  All other methods
# finish, and events report their result: half a Start cannot be undone.
UNDOABLE = ("Create",)
# Methods that return without waiting.
IMMEDIATE = ("State", "Pids", "Connect", "Stats", "Exec", "CloseIO", "ResizePty")

_STATUS = {
    State.CREATED: process_pb2.CREATED,
    State.RUNNING: process_pb2.RUNNING,
    State.PAUSED: process_pb2.PAUSED,
    State.STOPPED: process_pb2.STOPPED,
    State.DELETED: process_pb2.STOPPED,
}


class TaskService(TaskBase):
    """The containers of one daemon.  A Shutdown without a container left sets ``shutdown``."""

    def __init__(self, host: Host, shutdown: trio.Event) -> None:
        self._host = host
        self.containers = Containers(host, shutdown)
        self._continued = Continued(host, self.containers)

    async def restore(self, inherited: Inherited) -> None:
        """Go on with the containers of a killed daemon; call it before any request is served."""
        await self._continued.restore(inherited)

    def _process(self, id_: str, exec_id: str) -> Process:
        return self.containers.get(id_).process(exec_id)

    @unary
    async def State(self, request: StateRequest) -> StateResponse:
        container = self.containers.get(request.id)
        process = container.process(request.exec_id)
        process.check_readers()
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
            reply.exit_status = process.exit.exit_status
        _stamp(reply.exited_at, process.exit.exited_at if process.exit is not None else 0)
        return reply

    async def Create(self, stream: Stream[CreateTaskRequest, CreateTaskResponse]) -> None:
        request = await stream.recv_message()
        assert request is not None  # the stream is new
        containers, creations = self.containers, self.containers.creations
        await creations.wait_undone(request.id)
        if containers.shutdown.is_set():
            raise UnavailableError("cannot create: this shim is shutting down; start another")
        if stream.replayed and creations.was_cancelled(request.id):
            containers.shut_down()
            raise UnavailableError(f"cannot create container {request.id}: it was cancelled")
        if stream.replayed and (done := containers.find(request.id)) is not None:
            await stream.send_message(CreateTaskResponse(pid=done.init.pid))
            return
        self._continued.forget_deleted(request.id)
        containers.reserve(request.id)
        creation = creations.begin(request.id, stream)
        with creation.scope:
            try:
                container = await Container.create(request, self._host)
            except BaseException:
                containers.release(request.id)
                if creation.is_cancelled:
                    containers.note_cancelled(request.id)
                raise
            finally:
                self._continued.forget_undone(request.id)
                creations.end(request.id)
                # After every kind of failure: a manager that disconnected does not send a
                # Shutdown, and one that sent it does not repeat it.
                if creation.is_cancelled:
                    containers.shut_down()
            containers.add(container)
            await stream.send_message(CreateTaskResponse(pid=container.init.pid))
            return
        raise UnavailableError(f"cannot create container {request.id}: a Shutdown cancelled it")

    @replayable
    async def Start(self, request: StartRequest, replayed: bool) -> StartResponse:
        begin = time.monotonic_ns()
        container = self.containers.get(request.id)
        pid = await container.start(request.exec_id, replayed=replayed)
        if request.exec_id:
            COUNTERS.execs += 1
            COUNTERS.exec_time += time.monotonic_ns() - begin
        return StartResponse(pid=pid)

    @replayable
    async def Delete(self, request: DeleteRequest, replayed: bool) -> DeleteResponse:
        deleted = self._continued.deleted(request.id)
        if replayed and not request.exec_id and deleted is not None:
            exit_ = deleted.init.exit or NEVER_STARTED
            self._continued.forget_deleted(request.id)
        else:
            container = self.containers.get(request.id)
            exit_ = await container.delete(request.exec_id, replayed=replayed)
            if not request.exec_id:
                self.containers.release(request.id)
                container.close()
        reply = DeleteResponse(pid=exit_.pid, exit_status=exit_.exit_status)
        _stamp(reply.exited_at, exit_.exited_at)
        return reply

    @unary
    async def Pids(self, request: PidsRequest) -> PidsResponse:
        container = self.containers.get(request.id)
        execs = {process.pid: process.id for process in container.execs.values() if process.pid}
        reply = PidsResponse()
        for pid in container.pids():
            info = reply.processes.add(pid=pid)
            if pid in execs:
                info.info.CopyFrom(_details(execs[pid]))
        return reply

    @replayable
    async def Pause(self, request: PauseRequest, replayed: bool) -> Empty:
        await self.containers.get(request.id).pause(replayed=replayed)
        return Empty()

    @replayable
    async def Resume(self, request: ResumeRequest, replayed: bool) -> Empty:
        await self.containers.get(request.id).resume(replayed=replayed)
        return Empty()

    @recorded
    async def Checkpoint(
        self, request: CheckpointTaskRequest, call: Stream[CheckpointTaskRequest, Empty]
    ) -> Empty:
        await self.containers.get(request.id).checkpoint(request, call)
        return Empty()

    @recorded
    async def Kill(self, request: KillRequest, call: Stream[KillRequest, Empty]) -> Empty:
        await self.containers.get(request.id).kill(request, call)
        return Empty()

    @replayable
    async def Exec(self, request: ExecProcessRequest, replayed: bool) -> Empty:
        self.containers.get(request.id).add_exec(request, replayed=replayed)
        return Empty()

    @unary
    async def ResizePty(self, request: ResizePtyRequest) -> Empty:
        self._process(request.id, request.exec_id).resize(request.width, request.height)
        return Empty()

    @unary
    async def CloseIO(self, request: CloseIORequest) -> Empty:
        container = self.containers.get(request.id)
        if request.stdin:
            container.close_stdin(request.exec_id)
        else:
            container.process(request.exec_id)
        return Empty()

    @unary
    async def Update(self, request: UpdateTaskRequest) -> Empty:
        await self.containers.get(request.id).update(request.resources)
        return Empty()

    @unary
    async def Wait(self, request: WaitRequest) -> WaitResponse:
        process = self._process(request.id, request.exec_id)
        process.check_readers()
        exit_ = await process.wait()
        reply = WaitResponse(exit_status=exit_.exit_status)
        _stamp(reply.exited_at, exit_.exited_at)
        return reply

    @unary
    async def Stats(self, request: StatsRequest) -> StatsResponse:
        if not request.id:  # no container has this id: the daemon's own counters
            return StatsResponse(stats=self._counters())
        return StatsResponse(stats=self.containers.get(request.id).stats())

    def _counters(self) -> AnyMessage:
        values = {
            **COUNTERS.values(),
            "events_waiting": self._host.publisher.waiting,
            "containers": len(self.containers),
        }
        return AnyMessage(type_url=names.COUNTERS, value=json.dumps(values).encode())

    @unary
    async def Connect(self, request: ConnectRequest) -> ConnectResponse:
        if request.joins or request.reservation:  # only our ``start`` sets them
            self.containers.join(request.reservation)
        id_ = request.id
        if self.containers.creations.was_cancelled(id_) or self._continued.is_undone(id_):
            # containerd 1.6 keeps the container after any other reply.
            raise NotFoundError(f"the creation of {request.id} was cancelled: not found")
        container = self.containers.find(request.id)
        pid = container.init.pid if container is not None else 0
        unkept = self._host.deposit.problem
        return ConnectResponse(shim_pid=os.getpid(), task_pid=pid, version=VERSION, unkept=unkept)

    @unary
    async def Shutdown(self, request: ShutdownRequest) -> Empty:
        creation = self.containers.creations.under_way.get(request.id)
        if creation is not None:
            # A manager that restarted does not wait for a Create of its earlier run.
            self.containers.note_cancelled(request.id)
            creation.scope.cancel()
            # It cleans up after this reply, and would leave anything that the runtime
            # creates later.
            with trio.move_on_after(_UNDO_LIMIT):
                await creation.ended.wait()
        elif self.containers:
            log.debug("cannot shut down: containers are left", count=len(self.containers))
        else:
            self.containers.shut_down()
        return Empty()


def _details(exec_id: str) -> AnyMessage:
    details = ProcessDetails(exec_id=exec_id)
    return AnyMessage(
        type_url=ProcessDetails.DESCRIPTOR.full_name, value=details.SerializeToString()
    )


def _stamp(field: Timestamp, nanoseconds: int) -> None:
    """Fill ``field``; 0 becomes year 1, Go's zero time: clients read an absent field as 1970."""
    if nanoseconds:
        field.FromNanoseconds(nanoseconds)
    else:
        field.seconds = ZERO_TIME
