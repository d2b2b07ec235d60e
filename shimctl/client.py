"""A shim and its tasks, as objects: the Task API of any shim v2.

Every method is one call on one connection, and many may run at once.  The
shim is asked in version 3 first; one that only knows version 2 says so with
UNIMPLEMENTED, and from then on is asked in version 2: the messages are the same.

Failures are :mod:`shim.errors`: the one whose status the shim answered with,
UnavailableError when the connection is refused or lost, TimedOutError when no
answer came in time, InvalidError for what does not fit into a request.  Who answers
something that is no ttrpc is a plain ShimError.

The classes wait for nothing but their channel, and so belong to no framework:
:func:`connect` makes them on trio, :mod:`shimctl.aio` on asyncio, and
:mod:`shimctl.blocking` drives them without either.  None is imported here.

Source: containerd api/runtime/task/v3/shim.proto; the runc options and JSON
payloads are those of containerd's api/types/runc/options and pkg/oci.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from grpclib.const import Status as RpcStatus
from grpclib.exceptions import GRPCError

from shim.api import task_pb2 as api
from shim.api.task_grpc import TaskStub
from shim.errors import (
    ExistsError,
    InvalidError,
    NotFoundError,
    ShimError,
    TimedOutError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
)
from shim.linux import sockets
from shim.ttrpc.calls import Channel, ConnectionLostError, UnaryUnaryMethod
from shimctl.options import checkpoint_options, json_value, made
from shimctl.values import (
    Connected,
    Exited,
    Pid,
    Stats,
    Stdio,
    TaskState,
    pids_of,
    state_of,
    stats_of,
    time_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
    from pathlib import Path

    from google.protobuf.any_pb2 import Any as AnyMessage

    from shim.api.mount_pb2 import Mount

CONNECT_TIMEOUT = 5  # s
CALL_TIMEOUT = 30  # s; a call that runs the runtime may need a few
_V2, _V3 = "containerd.task.v2.Task", "containerd.task.v3.Task"
_NAMESPACE = "containerd-namespace-ttrpc"


_ERRORS: dict[RpcStatus, type[ShimError]] = {
    error.status: error
    for error in (
        ExistsError,
        InvalidError,
        NotFoundError,
        TimedOutError,
        UnavailableError,
        UnsupportedError,
        WrongStateError,
    )
}


@asynccontextmanager
async def connect(
    address: str, *, namespace: str = "", timeout: float = CONNECT_TIMEOUT
) -> AsyncIterator[Shim]:
    """Connect to the shim at ``address`` for the length of the block.

    ``address`` is what the shim's ``start`` printed: ``unix://`` and a path, or the
    name of an abstract socket; a path alone will do.  ``namespace`` goes along with
    every call; a shim without it uses the one it was started with.

    The connection is closed at the end of the block, and with it every call on it
    ends; the shim and its containers go on.

    :raises UnavailableError: nobody listens there.
    :raises TimedOutError: somebody does, but accepts no one in ``timeout`` seconds.
    :raises InvalidError: this can be no address, or neither root nor our own user serves it.
    """
    from shim.ttrpc.client import open_channel  # trio, which the other faces do without

    with reaching(address) as whole:
        stream = await sockets.connect(whole, timeout)
        try:
            sockets.check_server(stream.socket, whole)
        except BaseException:
            stream.socket.close()
            raise
    async with open_channel(stream) as channel:
        yield Shim(channel, whole, namespace)


@contextmanager
def reaching(address: str) -> Iterator[str]:
    """Give the whole of ``address``, to connect to in the block; what fails is typed.

    :raises UnavailableError: the block cannot connect.
    """
    whole = f"unix://{address}" if address.startswith("/") else address
    try:
        yield whole
    except OSError as exc:
        raise UnavailableError(f"cannot connect to {whole}: {exc.strerror or exc}") from None


class Shim:
    """One shim daemon, which may hold several tasks.  Made by ``connect``."""

    def __init__(self, channel: Channel, address: str, namespace: str) -> None:
        self.address = address
        self._metadata = {_NAMESPACE: namespace} if namespace else None
        self._v3 = TaskStub(channel)
        self._v2 = _alias(self._v3, channel)
        self._versions = [3, 2]  # to be tried, in this order

    @property
    def api_version(self) -> int:
        """The version of the Task API that was agreed on, 0 before the first call."""
        return self._versions[0] if len(self._versions) == 1 else 0

    def task(self, task_id: str, exec_id: str = "") -> Task:
        """Return the init of container ``task_id``, or one of its execs.

        This asks the shim nothing; whether there is such a process, the first call tells.
        """
        return Task(self, task_id, exec_id)

    async def connect(self, task_id: str = "", *, timeout: float = CALL_TIMEOUT) -> Connected:
        """Ask who answers, and the pid of ``task_id`` if the shim knows it."""
        reply = await self.call("Connect", made(api.ConnectRequest, id=task_id), timeout)
        return Connected(reply.shim_pid, reply.task_pid, reply.version)

    async def create(
        self,
        task_id: str,
        bundle: str | Path,
        *,
        stdio: Stdio | None = None,
        rootfs: Sequence[Mount] = (),
        checkpoint: str | Path = "",
        options: AnyMessage | None = None,
        timeout: float = CALL_TIMEOUT,
    ) -> int:
        """Create container ``task_id`` from the OCI ``bundle``; return the pid of its init.

        ``rootfs`` is mounted on ``bundle/rootfs`` first.  The container does not
        run before :meth:`Task.start`.  With ``checkpoint``, a directory that
        :meth:`Task.checkpoint` has filled, it then goes on where it was.
        ``options`` are the runtime's; see :func:`shimctl.runc_options`.

        :raises ExistsError: the id is taken.
        :raises ShimError: the runtime refused; the message is its own.
        """
        stdio = stdio or Stdio()
        request = made(
            api.CreateTaskRequest,
            id=task_id,
            bundle=str(bundle),
            rootfs=rootfs,
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            checkpoint=str(checkpoint),
            options=options,
        )
        reply = await self.call("Create", request, timeout)
        return int(reply.pid)

    async def shutdown(self, *, now: bool = False, timeout: float = CALL_TIMEOUT) -> None:
        """Ask the shim to exit; with containers left it stays, and that is no error."""
        try:
            await self.call("Shutdown", made(api.ShutdownRequest, now=now), timeout)
        except UnavailableError:
            return  # it was gone before it could answer

    async def call(self, method: str, request: Any, timeout: float | None) -> Any:
        """Make one call of the Task API by name; ``timeout=None`` waits for ever."""
        try:
            return await self._call(method, request, timeout)
        except GRPCError as exc:
            error = _ERRORS.get(exc.status, ShimError)
            raise error(exc.message or f"{method}: {exc.status.name}") from None
        except ConnectionLostError:
            raise UnavailableError(f"the shim went away during {method}") from None

    async def _call(self, method: str, request: Any, timeout: float | None) -> Any:
        for version in list(self._versions):
            stub = self._v3 if version == 3 else self._v2
            last = version == self._versions[-1]
            try:
                reply = await getattr(stub, method)(
                    request, timeout=timeout, metadata=self._metadata
                )
            except GRPCError as exc:
                if exc.status is RpcStatus.UNIMPLEMENTED and not last:
                    continue
                # A deadline is ours as well: it says nothing about who is there.
                if exc.status not in (RpcStatus.UNIMPLEMENTED, RpcStatus.DEADLINE_EXCEEDED):
                    self._versions = [version]
                raise
            else:
                self._versions = [version]
                return reply
        raise AssertionError("there is always a version to try")


class Task:
    """One process of a container: its init, or with ``exec_id`` one exec'ed into it."""

    def __init__(self, shim: Shim, task_id: str, exec_id: str = "") -> None:
        self.shim = shim
        self.id = task_id
        self.exec_id = exec_id

    async def start(self, *, timeout: float = CALL_TIMEOUT) -> int:
        """Start the process; return its pid.

        :raises WrongStateError: it has been started already.  Some shims say only ShimError.
        """
        request = made(api.StartRequest, id=self.id, exec_id=self.exec_id)
        reply = await self.shim.call("Start", request, timeout)
        return int(reply.pid)

    async def exec(
        self,
        exec_id: str,
        process: Mapping[str, object],
        *,
        stdio: Stdio | None = None,
        timeout: float = CALL_TIMEOUT,
    ) -> Task:
        """Add a process, described by the ``process`` object of an OCI config; start it next.

        :raises ExistsError: the container has such an ``exec_id`` already.
        """
        stdio = stdio or Stdio()
        request = made(
            api.ExecProcessRequest,
            id=self.id,
            exec_id=exec_id,
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            spec=json_value("Process", process),
        )
        await self.shim.call("Exec", request, timeout)
        return Task(self.shim, self.id, exec_id)

    async def state(self, *, timeout: float = CALL_TIMEOUT) -> TaskState:
        """Ask for the process's state.

        :raises NotFoundError: the shim knows no such container or exec.
        """
        request = made(api.StateRequest, id=self.id, exec_id=self.exec_id)
        return state_of(await self.shim.call("State", request, timeout))

    async def kill(
        self, signal: int, *, everyone: bool = False, timeout: float = CALL_TIMEOUT
    ) -> None:
        """Send a signal to the process, or to ``everyone`` in the container.

        :raises NotFoundError: the process has ended.
        """
        request = made(
            api.KillRequest, id=self.id, exec_id=self.exec_id, signal=signal, all=everyone
        )
        await self.shim.call("Kill", request, timeout)

    async def wait(self, *, timeout: float | None = None) -> Exited:
        """Wait for the end of the process, for ever unless ``timeout`` says otherwise.

        One that has ended already is answered at once, until it is deleted.

        :raises TimedOutError: it still runs after ``timeout`` seconds.
        """
        request = made(api.WaitRequest, id=self.id, exec_id=self.exec_id)
        reply = await self.shim.call("Wait", request, timeout)
        return Exited(reply.exit_status, time_of(reply.exited_at))

    async def delete(self, *, timeout: float = CALL_TIMEOUT) -> Exited:
        """Delete the ended process: the shim forgets it, a container's resources are freed.

        :raises WrongStateError: it still runs.  Some shims say only ShimError.
        """
        request = made(api.DeleteRequest, id=self.id, exec_id=self.exec_id)
        reply = await self.shim.call("Delete", request, timeout)
        return Exited(reply.exit_status, time_of(reply.exited_at), reply.pid)

    async def pids(self, *, timeout: float = CALL_TIMEOUT) -> tuple[Pid, ...]:
        """List the processes of the container."""
        reply = await self.shim.call("Pids", made(api.PidsRequest, id=self.id), timeout)
        return pids_of(reply.processes)

    async def stats(self, *, timeout: float = CALL_TIMEOUT) -> Stats:
        """Measure what the container uses.

        :raises UnsupportedError: this runtime has no metrics, or strange ones.
        """
        reply = await self.shim.call("Stats", made(api.StatsRequest, id=self.id), timeout)
        return stats_of(reply.stats)

    async def pause(self, *, timeout: float = CALL_TIMEOUT) -> None:
        """Freeze every process of the container."""
        await self.shim.call("Pause", made(api.PauseRequest, id=self.id), timeout)

    async def resume(self, *, timeout: float = CALL_TIMEOUT) -> None:
        """Undo :meth:`pause`."""
        await self.shim.call("Resume", made(api.ResumeRequest, id=self.id), timeout)

    async def checkpoint(
        self,
        path: str | Path,
        *,
        stop: bool = False,
        work_path: str | Path = "",
        options: AnyMessage | None = None,
        timeout: float = CALL_TIMEOUT,
    ) -> None:
        """Write the container's memory and state into the directory ``path``, with criu.

        It goes on running, unless ``stop``.  criu's logs go to ``work_path``.
        ``options``, the runtime's own message, replaces both.

        :raises UnsupportedError: this host has no criu.  Some shims say only ShimError.
        """
        request = made(
            api.CheckpointTaskRequest,
            id=self.id,
            path=str(path),
            options=options or checkpoint_options(path, stop=stop, work_path=work_path),
        )
        await self.shim.call("Checkpoint", request, timeout)

    async def update(
        self,
        resources: Mapping[str, object],
        *,
        annotations: Mapping[str, str] | None = None,
        timeout: float = CALL_TIMEOUT,
    ) -> None:
        """Change limits; ``resources`` is the ``linux.resources`` object of an OCI config."""
        request = made(
            api.UpdateTaskRequest,
            id=self.id,
            resources=json_value("LinuxResources", resources),
            annotations=annotations,
        )
        await self.shim.call("Update", request, timeout)

    async def resize(self, width: int, height: int, *, timeout: float = CALL_TIMEOUT) -> None:
        """Tell the process's terminal its size, in characters."""
        request = made(
            api.ResizePtyRequest, id=self.id, exec_id=self.exec_id, width=width, height=height
        )
        await self.shim.call("ResizePty", request, timeout)

    async def close_io(self, *, timeout: float = CALL_TIMEOUT) -> None:
        """Let the process see the end of its input, once every writer has closed it."""
        request = made(api.CloseIORequest, id=self.id, exec_id=self.exec_id, stdin=True)
        await self.shim.call("CloseIO", request, timeout)


def _alias(stub: TaskStub, channel: Channel) -> TaskStub:
    """Return ``stub`` under the other version's name."""
    other = TaskStub(channel)
    for name, method in vars(stub).items():
        route = method.name.replace(_V3, _V2)
        renamed = UnaryUnaryMethod(channel, route, method.request_type, method.reply_type)
        setattr(other, name, renamed)
    return other
