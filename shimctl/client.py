"""A shim as an object: a client of the Task API of any shim v2.

Every method makes one call.  Many calls may run at once on one connection.  The
first call uses Task v3.  If the shim answers it with UNIMPLEMENTED, that call and
all later ones use Task v2.  The messages of both versions are the same.

Failures raise the exceptions of :mod:`shim.errors`:

- the exception for the status that the shim returned;
- UnavailableError if the connection is refused or lost;
- TimedOutError if no answer arrives in time;
- InvalidError if a value does not fit into the request;
- ShimError if the peer's answer is not ttrpc.

The classes await only their channel and their :mod:`~shimctl.backend`, so they work on
every framework.  This module imports none.

Source: containerd api/runtime/task/v3/shim.proto.
"""

from __future__ import annotations

from contextlib import contextmanager
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
from shim.ttrpc.calls import Channel, ConnectionLostError, UnaryUnaryMethod
from shimctl.backend import CONNECT_TIMEOUT, TRIO, portable_block
from shimctl.checks import check_id
from shimctl.options import make_message
from shimctl.task import CALL_TIMEOUT as CALL_TIMEOUT
from shimctl.task import Task as Task
from shimctl.values import Connected, Stdio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from google.protobuf.any_pb2 import Any as AnyMessage

    from shim.api.mount_pb2 import Mount
    from shimctl.backend import Backend

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


@portable_block
async def connect(
    backend: Backend, address: str, *, namespace: str = "", timeout: float = CONNECT_TIMEOUT
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
    with _connecting_to(address) as whole:
        dialled = await backend.dial(whole, timeout)
    async with backend.open_channel(dialled) as channel:
        yield Shim(channel, whole, namespace, backend)


@contextmanager
def _connecting_to(address: str) -> Iterator[str]:
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

    def __init__(
        self, channel: Channel, address: str, namespace: str, backend: Backend = TRIO
    ) -> None:
        self.address = address
        self.channel = channel
        self.backend = backend
        self._metadata = {_NAMESPACE: namespace} if namespace else None
        self._v3 = TaskStub(channel)
        self._v2 = _alias(self._v3, channel)
        self._versions = [3, 2]  # the versions to try, in this order

    def __repr__(self) -> str:
        return f"<Shim at {self.address}>"

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
        return Connected(reply.shim_pid, reply.task_pid, reply.version, reply.unkept)

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
        :raises InvalidError: the id is not valid.
        :raises ShimError: the runtime failed; the message is the runtime's.
        """
        stdio = stdio or Stdio()
        request = make_message(
            api.CreateTaskRequest,
            id=check_id(task_id),
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
            raise error_of(exc, method) from None
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


def error_of(exc: GRPCError, method: str) -> ShimError:
    """Return the error for the status that a shim returned for ``method``."""
    error = _ERRORS.get(exc.status, ShimError)
    return error(exc.message or f"{method}: {exc.status.name}")


def _alias(stub: TaskStub, channel: Channel) -> TaskStub:
    """Return a copy of ``stub`` whose methods call Task v2."""
    other = TaskStub(channel)
    for name, method in vars(stub).items():
        route = method.name.replace(_V3, _V2)
        renamed = UnaryUnaryMethod(channel, route, method.request_type, method.reply_type)
        setattr(other, name, renamed)
    return other
