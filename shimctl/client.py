"""A shim and its tasks as objects: a client of the Task API of any shim v2.

Every method makes one call.  Many calls may run at once on one connection.  The
first call uses Task v3.  If the shim answers it with UNIMPLEMENTED, that call and
all later ones use Task v2.  The messages of both versions are the same.

Failures raise the exceptions of :mod:`shim.errors`:

- the exception for the status that the shim returned;
- UnavailableError if the connection is refused or lost;
- TimedOutError if no answer arrives in time;
- InvalidError if a value does not fit into the request;
- ShimError if the peer's answer is not ttrpc.

The classes await only their channel, so they work on every framework.
:func:`connect` makes them on trio, :mod:`shimctl.aio` on asyncio, and
:mod:`shimctl.blocking` runs them in plain threads.  This module imports no framework.

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
from shimctl.options import checkpoint_options, json_value, make_message
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
CALL_TIMEOUT = 30  # s; a call that runs a runtime command may take several seconds
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

    ``address`` is the address that the shim's ``start`` printed: ``unix://`` and the path
    of a socket or the name of an abstract socket.  A plain path is accepted too.
    ``namespace`` is sent with every call; if it is empty, the shim uses the namespace it
    was started with.

    The end of the block closes the connection and ends every call on it.  The shim and
    its containers keep running.

    :raises UnavailableError: no process listens on the address.
    :raises TimedOutError: the server does not accept within ``timeout`` seconds.
    :raises InvalidError: the address is malformed, or the server runs neither as root nor
        as our own user.
    """
    from shim.ttrpc.client import open_channel  # needs trio, which the other backends do not

    with connecting_to(address) as whole:
        stream = await sockets.connect(whole, timeout)
        try:
            sockets.check_server(stream.socket, whole)
        except BaseException:
            stream.socket.close()
            raise
    async with open_channel(stream) as channel:
        yield Shim(channel, whole, namespace)


@contextmanager
def connecting_to(address: str) -> Iterator[str]:
    """Yield ``address`` with its ``unix://``; convert an OSError of the block.

    :raises UnavailableError: the block raised OSError, because it could not connect.
    """
    whole = f"unix://{address}" if address.startswith("/") else address
    try:
        yield whole
    except OSError as exc:
        raise UnavailableError(f"cannot connect to {whole}: {exc.strerror or exc}") from None


class Shim:
    """One shim daemon, which may have several tasks.  Made by ``connect``."""

    def __init__(self, channel: Channel, address: str, namespace: str) -> None:
        self.address = address
        self._metadata = {_NAMESPACE: namespace} if namespace else None
        self._v3 = TaskStub(channel)
        self._v2 = _alias(self._v3, channel)
        self._versions = [3, 2]  # the versions to try, in this order

    @property
    def api_version(self) -> int:
        """The version of the Task API that the shim accepts, 0 before the first call."""
        return self._versions[0] if len(self._versions) == 1 else 0

    def task(self, task_id: str, exec_id: str = "") -> Task:
        """Return the init process of container ``task_id``, or its exec ``exec_id``.

        This makes no call.  If the shim has no such process, the first call on the
        returned object raises NotFoundError.
        """
        return Task(self, task_id, exec_id)

    async def connect(self, task_id: str = "", *, timeout: float = CALL_TIMEOUT) -> Connected:
        """Return the shim's pid and version, and the pid of ``task_id`` if the shim has it."""
        reply = await self.call("Connect", make_message(api.ConnectRequest, id=task_id), timeout)
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

        The shim first mounts ``rootfs`` on ``bundle/rootfs``.  The container does not run
        before :meth:`Task.start`.  ``checkpoint`` is a directory that
        :meth:`Task.checkpoint` wrote; the start then restores the container from it.
        ``options`` are those of the runtime; see :func:`shimctl.runc_options`.

        :raises ExistsError: a container with this id exists.
        :raises ShimError: the runtime failed; the message is the runtime's.
        """
        stdio = stdio or Stdio()
        request = make_message(
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
        """Ask the shim to exit.  A shim that still has containers stays; this is no error."""
        try:
            await self.call("Shutdown", make_message(api.ShutdownRequest, now=now), timeout)
        except UnavailableError:
            return  # the shim exited before it answered

    async def call(self, method: str, request: Any, timeout: float | None) -> Any:
        """Make one call of the Task API by its name.

        ``timeout`` is in seconds; None waits without a limit.
        """
        try:
            return await self._call(method, request, timeout)
        except GRPCError as exc:
            error = _ERRORS.get(exc.status, ShimError)
            raise error(exc.message or f"{method}: {exc.status.name}") from None
        except ConnectionLostError:
            raise UnavailableError(f"{method} failed: the shim closed the connection") from None

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
                # Our own deadline has this status too; it shows nothing about the shim.
                if exc.status not in (RpcStatus.UNIMPLEMENTED, RpcStatus.DEADLINE_EXCEEDED):
                    self._versions = [version]
                raise
            else:
                self._versions = [version]
                return reply
        raise AssertionError("there is always a version to try")


class Task:
    """One process of a container: its init process, or the exec ``exec_id``."""

    def __init__(self, shim: Shim, task_id: str, exec_id: str = "") -> None:
        self.shim = shim
        self.id = task_id
        self.exec_id = exec_id

    async def start(self, *, timeout: float = CALL_TIMEOUT) -> int:
        """Start the process; return its pid.

        :raises WrongStateError: the process was started before.  Some shims' status maps to
            ShimError.
        """
        request = make_message(api.StartRequest, id=self.id, exec_id=self.exec_id)
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
        """Add an exec to the container and return it; :meth:`start` then runs it.

        ``process`` is the ``process`` object of an OCI config.

        :raises ExistsError: the container has an exec with this ``exec_id``.
        """
        stdio = stdio or Stdio()
        request = make_message(
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
        """Return the process's state.

        :raises NotFoundError: the shim has no such container or exec.
        """
        request = make_message(api.StateRequest, id=self.id, exec_id=self.exec_id)
        return state_of(await self.shim.call("State", request, timeout))

    async def kill(
        self, signal: int, *, everyone: bool = False, timeout: float = CALL_TIMEOUT
    ) -> None:
        """Send a signal to the process, or with ``everyone`` to all processes of the container.

        :raises NotFoundError: the process has exited.
        """
        request = make_message(
            api.KillRequest, id=self.id, exec_id=self.exec_id, signal=signal, all=everyone
        )
        await self.shim.call("Kill", request, timeout)

    async def wait(self, *, timeout: float | None = None) -> Exited:
        """Wait until the process exits; without a ``timeout`` the wait has no limit.

        If the process has exited and is not deleted, this returns at once.

        :raises TimedOutError: the process still runs after ``timeout`` seconds.
        """
        request = make_message(api.WaitRequest, id=self.id, exec_id=self.exec_id)
        reply = await self.shim.call("Wait", request, timeout)
        return Exited(reply.exit_status, time_of(reply.exited_at))

    async def delete(self, *, timeout: float = CALL_TIMEOUT) -> Exited:
        """Delete the exited process; of an init process, also free the container's resources.

        :raises WrongStateError: the process still runs.  Some shims' status maps to
            ShimError.
        """
        request = make_message(api.DeleteRequest, id=self.id, exec_id=self.exec_id)
        reply = await self.shim.call("Delete", request, timeout)
        return Exited(reply.exit_status, time_of(reply.exited_at), reply.pid)

    async def pids(self, *, timeout: float = CALL_TIMEOUT) -> tuple[Pid, ...]:
        """List the processes of the container."""
        reply = await self.shim.call("Pids", make_message(api.PidsRequest, id=self.id), timeout)
        return pids_of(reply.processes)

    async def stats(self, *, timeout: float = CALL_TIMEOUT) -> Stats:
        """Return the container's resource usage.

        :raises UnsupportedError: the runtime has no metrics, or metrics of an unknown type.
        """
        reply = await self.shim.call("Stats", make_message(api.StatsRequest, id=self.id), timeout)
        return stats_of(reply.stats)

    async def pause(self, *, timeout: float = CALL_TIMEOUT) -> None:
        """Freeze every process of the container."""
        await self.shim.call("Pause", make_message(api.PauseRequest, id=self.id), timeout)

    async def resume(self, *, timeout: float = CALL_TIMEOUT) -> None:
        """Undo :meth:`pause`."""
        await self.shim.call("Resume", make_message(api.ResumeRequest, id=self.id), timeout)

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

        The container keeps running, unless ``stop``.  criu writes its logs to ``work_path``.
        ``options``, the runtime's own message, replaces ``stop`` and ``work_path``.

        :raises UnsupportedError: the host has no criu.  Some shims' status maps to
            ShimError.
        """
        request = make_message(
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
        request = make_message(
            api.UpdateTaskRequest,
            id=self.id,
            resources=json_value("LinuxResources", resources),
            annotations=annotations,
        )
        await self.shim.call("Update", request, timeout)

    async def resize(self, width: int, height: int, *, timeout: float = CALL_TIMEOUT) -> None:
        """Set the size of the process's terminal, in characters."""
        request = make_message(
            api.ResizePtyRequest, id=self.id, exec_id=self.exec_id, width=width, height=height
        )
        await self.shim.call("ResizePty", request, timeout)

    async def close_io(self, *, timeout: float = CALL_TIMEOUT) -> None:
        """Close the shim's end of stdin; the process reads EOF after every writer closed too."""
        request = make_message(api.CloseIORequest, id=self.id, exec_id=self.exec_id, stdin=True)
        await self.shim.call("CloseIO", request, timeout)


def _alias(stub: TaskStub, channel: Channel) -> TaskStub:
    """Return a copy of ``stub`` whose methods call Task v2."""
    other = TaskStub(channel)
    for name, method in vars(stub).items():
        route = method.name.replace(_V3, _V2)
        renamed = UnaryUnaryMethod(channel, route, method.request_type, method.reply_type)
        setattr(other, name, renamed)
    return other
