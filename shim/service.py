"""The Task API: one short method for each call.  ``shim.container`` does the work.

Source: containerd api/runtime/task/v3/shim.proto; v2 differs only in its name.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from functools import partial
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
from shim.container.lifecycle import State
from shim.container.reservations import Reservation
from shim.container.snapshot import parse
from shim.container.task_events import ZERO_TIME
from shim.counters import COUNTERS
from shim.errors import ExistsError, NotFoundError, ShimError, UnavailableError
from shim.exit import NEVER_STARTED
from shim.ttrpc.server import Stream, replayable, unary
from shim.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from google.protobuf.timestamp_pb2 import Timestamp

    from shim.container.host import Host
    from shim.container.process import Process
    from shim.recovery.inherited import Inherited

# Further names under which the service is registered.
ALIASES = {"containerd.task.v3.Task": "containerd.task.v2.Task"}
# Seconds that a Shutdown waits for a Create that it has cancelled: containerd's timeout
# for a Shutdown is three.
_UNDO_LIMIT = 2.5
# Seconds for which a shim without a container stays for the Create of a ``start`` that
# joined it.  The manager sends Create as soon as it has read the answer of ``start``.
JOIN_LIMIT = 5.0
_STARTS = 1000  # such ``start`` to count
# Ids of cancelled Creates to remember.  A manager that restarted asks for one within a
# second; a pod has fewer containers.
_CANCELLED = 1000
# Seconds for the calls of a killed daemon to be replayed.
_REPLAYED = 10.0
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


class _Creation:
    """A Create under way.  ``ended`` is set once it has succeeded or is undone.

    ``stream`` is that of its call; None for one that a killed daemon began, and that is undone.
    """

    def __init__(self, stream: Stream[CreateTaskRequest, CreateTaskResponse] | None) -> None:
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self._stream = stream

    @property
    def is_cancelled(self) -> bool:
        """Whether the caller's connection has ended, or a Shutdown has cancelled the Create."""
        return self._stream is None or self._stream.lost or self.scope.cancel_called


class TaskService(TaskBase):
    """The containers of one daemon.  A Shutdown without a container left sets ``shutdown``."""

    def __init__(self, host: Host, shutdown: trio.Event) -> None:
        self._host = host
        self._shutdown = shutdown
        # None while the container is being created, which reserves its id.
        self._containers: dict[str, Container | None] = {}
        self._in_use = trio.Event()
        self._unused = trio.Event()
        self._creating: dict[str, _Creation] = {}
        # For each ``start`` that has joined and whose Create has not arrived: the time at
        # which it is no longer expected.
        self._joined: deque[float] = deque(maxlen=_STARTS)
        self._waiting = 0  # calls of Create that wait for a cancelled one of their id
        # Ids of which the last Create was cancelled, the oldest first.
        self._cancelled: dict[str, None] = {}
        # Containers whose Delete a killed daemon had done, but perhaps not replied to.
        self._deleted: dict[str, Container] = {}
        # Containers whose interrupted Create is undone, and may run again.
        self._undone: dict[str, Container] = {}

    async def restore(self, inherited: Inherited) -> None:
        """Go on with the containers of a killed daemon; call it before any request is served."""
        unsettled: list[Callable[[], Awaitable[object]]] = []
        for id_ in inherited.names("state/"):
            slot = inherited.take_slot(f"state/{id_}")
            assert slot is not None
            try:
                snapshot = parse(slot.read())
                container = await Container.restore(snapshot, slot, inherited, self._host)
            except (ShimError, OSError) as exc:
                log.error("cannot go on with a container: it is lost", id=id_, error=exc)
                slot.close()
                continue
            if snapshot.doing == "Create":
                creation = self._creating[id_] = _Creation(None)
                unsettled.append(creation.ended.wait)
                self._host.go(partial(self._undo, container, creation))
            elif container.init.state is State.DELETED:
                self._deleted[id_] = container
                self._host.go(partial(self._forget_deleted_later, container))
            else:
                self._reserve(id_)
                self._containers[id_] = container
                unsettled.append(container.wait_settled)
        self._host.go(partial(self._claim, unsettled))

    async def _claim(self, unsettled: list[Callable[[], Awaitable[object]]]) -> None:
        """Let the keeper reap orphans that are not known, once all others are."""
        for settled in unsettled:
            await settled()
        self._host.deposit.claimed()

    async def _undo(self, container: Container, creation: _Creation) -> None:
        """Undo the interrupted Create of ``container``; its call, if it is replayed, waits."""
        try:
            await container.undo_create()
        finally:
            del self._creating[container.id]
            creation.ended.set()
            self._undone[container.id] = container
        await trio.sleep(_REPLAYED)
        self._forget_undone(container.id)
        if container.id not in self._containers:
            self._host.reservations.drop(container.id)
            self.shut_down()

    def _forget_undone(self, id_: str) -> None:
        if (container := self._undone.pop(id_, None)) is not None:
            container.release_streams()

    async def _forget_deleted_later(self, container: Container) -> None:
        await trio.sleep(_REPLAYED)
        self._forget_deleted(container.id)

    def _forget_deleted(self, id_: str) -> None:
        if (container := self._deleted.pop(id_, None)) is not None:
            container.close()
            self._host.reservations.drop(id_)

    async def wait_unused(self, seconds: float) -> None:
        """Return once there has been no container for ``seconds``.

        Only a manager that died between two steps leaves a shim without a container
        for long.  containerd 1.6 then never shuts that shim down, and cannot use the
        container id again until the shim has exited.
        """
        while True:
            with trio.move_on_after(seconds) as scope:
                await self._in_use.wait()
            if scope.cancelled_caught:
                return
            await self._unused.wait()

    def shut_down(self) -> None:
        """Set ``shutdown`` if there is no container and none is about to be created.

        A ``start`` that joined has the address, but its manager may not have connected yet.
        The shim then ends later, unless a container is created.
        """
        if self._containers or self._waiting or self._creating:
            return
        while self._joined and self._joined[0] <= trio.current_time():
            self._joined.popleft()
        joined = self._joined[-1] if self._joined else 0.0
        if until := max(joined, self._host.reservations.expected_until):
            self._host.go(partial(self._shut_down_at, until))
        else:
            self._shutdown.set()

    @property
    def is_settled(self) -> bool:
        """Whether no operation is under way, so that the states of the containers are complete."""
        if self._creating or self._host.reaper.commands:
            return False
        return all(one is None or one.is_settled for one in self._containers.values())

    def forget_start(self, id_: str) -> None:
        """Shut down as above, without the container ``id_``, whose ``start`` has failed."""
        if id_ not in self._containers:
            self._host.reservations.drop(id_)
        self.shut_down()

    async def _shut_down_at(self, time: float) -> None:
        with trio.move_on_at(time):
            await self._in_use.wait()
            return  # a Create came: the shim ends with its last container
        self.shut_down()

    def _reserve(self, id_: str) -> None:
        if id_ in self._containers:
            raise ExistsError(f"container {id_} already exists in this shim")
        if not self._containers:  # wait_unused() waits for the end of this use
            self._unused = trio.Event()
        self._containers[id_] = None
        self._in_use.set()
        self._host.reservations.fulfil(id_)
        if self._joined:
            self._joined.popleft()

    def _release(self, id_: str) -> None:
        del self._containers[id_]
        self._host.reservations.drop(id_)
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
        await self._wait_undone(request.id)
        if self._shutdown.is_set():
            raise UnavailableError("cannot create: this shim is shutting down; start another")
        if stream.replayed and (done := self._containers.get(request.id)) is not None:
            await stream.send_message(CreateTaskResponse(pid=done.init.pid))
            return
        self._forget_deleted(request.id)
        self._reserve(request.id)
        self._cancelled.pop(request.id, None)
        creation = _Creation(stream)
        self._creating[request.id] = creation
        with creation.scope:
            try:
                container = await Container.create(request, self._host)
            except BaseException:
                self._release(request.id)
                if creation.is_cancelled:
                    self._note_cancelled(request.id)
                raise
            finally:
                self._forget_undone(request.id)
                del self._creating[request.id]
                creation.ended.set()
                # After every kind of failure: a manager that disconnected does not send a
                # Shutdown, and one that sent it does not repeat it.
                if creation.is_cancelled:
                    self.shut_down()
            self._containers[request.id] = container
            await stream.send_message(CreateTaskResponse(pid=container.init.pid))
            return
        raise UnavailableError(f"cannot create container {request.id}: a Shutdown cancelled it")

    def _note_cancelled(self, id_: str) -> None:
        self._cancelled[id_] = None
        if len(self._cancelled) > _CANCELLED:
            del self._cancelled[next(iter(self._cancelled))]

    async def _wait_undone(self, id_: str) -> None:
        """Wait until a cancelled Create of ``id_`` is undone."""
        creation = self._creating.get(id_)
        if creation is None or not creation.is_cancelled:
            return
        self._waiting += 1
        try:
            await creation.ended.wait()
        finally:
            self._waiting -= 1

    @replayable
    async def Start(self, request: StartRequest, replayed: bool) -> StartResponse:
        begin = time.monotonic_ns()
        container = self._container(request.id)
        pid = await container.start(request.exec_id, replayed=replayed)
        if request.exec_id:
            COUNTERS.execs += 1
            COUNTERS.exec_time += time.monotonic_ns() - begin
        return StartResponse(pid=pid)

    @replayable
    async def Delete(self, request: DeleteRequest, replayed: bool) -> DeleteResponse:
        if replayed and not request.exec_id and request.id in self._deleted:
            exit_ = self._deleted[request.id].init.exit or NEVER_STARTED
            self._forget_deleted(request.id)
        else:
            container = self._container(request.id)
            exit_ = await container.delete(request.exec_id, replayed=replayed)
            if not request.exec_id:
                self._release(request.id)
                container.close()
        reply = DeleteResponse(pid=exit_.pid, exit_status=exit_.exit_status)
        _stamp(reply.exited_at, exit_.exited_at)
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

    @replayable
    async def Pause(self, request: PauseRequest, replayed: bool) -> Empty:
        await self._container(request.id).pause(replayed=replayed)
        return Empty()

    @replayable
    async def Resume(self, request: ResumeRequest, replayed: bool) -> Empty:
        await self._container(request.id).resume(replayed=replayed)
        return Empty()

    @replayable
    async def Checkpoint(self, request: CheckpointTaskRequest, replayed: bool) -> Empty:
        await self._container(request.id).checkpoint(request, replayed=replayed)
        return Empty()

    @replayable
    async def Kill(self, request: KillRequest, replayed: bool) -> Empty:
        container = self._container(request.id)
        await container.kill(request.exec_id, request.signal, all_=request.all, replayed=replayed)
        return Empty()

    @replayable
    async def Exec(self, request: ExecProcessRequest, replayed: bool) -> Empty:
        self._container(request.id).add_exec(request, replayed=replayed)
        return Empty()

    @unary
    async def ResizePty(self, request: ResizePtyRequest) -> Empty:
        self._process(request.id, request.exec_id).resize(request.width, request.height)
        return Empty()

    @unary
    async def CloseIO(self, request: CloseIORequest) -> Empty:
        container = self._container(request.id)
        if request.stdin:
            container.close_stdin(request.exec_id)
        else:
            container.process(request.exec_id)
        return Empty()

    @unary
    async def Update(self, request: UpdateTaskRequest) -> Empty:
        await self._container(request.id).update(request.resources)
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
        return StatsResponse(stats=self._container(request.id).stats())

    def _counters(self) -> AnyMessage:
        values = {
            **COUNTERS.values(),
            "events_waiting": self._host.publisher.waiting,
            "containers": len(self._containers),
        }
        return AnyMessage(type_url=names.COUNTERS, value=json.dumps(values).encode())

    @unary
    async def Connect(self, request: ConnectRequest) -> ConnectResponse:
        if request.joins or request.reservation:  # only our ``start`` sets them
            self._join(request.reservation)
        creation = self._creating.get(request.id)
        if request.id in self._cancelled or (creation is not None and creation.is_cancelled):
            # containerd 1.6 keeps the container after any other reply.
            raise NotFoundError(f"the creation of {request.id} was cancelled: not found")
        container = self._containers.get(request.id)
        pid = container.init.pid if container is not None else 0
        return ConnectResponse(shim_pid=os.getpid(), task_pid=pid, version=VERSION)

    def _join(self, reservation: str) -> None:
        """Expect a container of which a ``start`` will reply with the address of this shim.

        ``reservation`` is empty for the container of a pod.

        :raises InvalidError: it is malformed.
        :raises UnavailableError: this shim is shutting down.
        :raises FullError, ExistsError: as :meth:`Reservations.add`.
        """
        if self._shutdown.is_set():
            raise UnavailableError("cannot join: this shim is shutting down")
        if not reservation:
            self._joined.append(trio.current_time() + JOIN_LIMIT)
        else:
            self._host.reservations.add(Reservation.parse(reservation), self._containers)

    @unary
    async def Shutdown(self, request: ShutdownRequest) -> Empty:
        if request.id in self._creating:
            # A manager that restarted does not wait for a Create of its earlier run.
            creation = self._creating[request.id]
            creation.scope.cancel()
            # It cleans up after this reply, and would leave anything that the runtime
            # creates later.
            with trio.move_on_after(_UNDO_LIMIT):
                await creation.ended.wait()
        elif self._containers:
            log.debug("cannot shut down: containers are left", count=len(self._containers))
        else:
            self.shut_down()
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
