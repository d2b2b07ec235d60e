"""containerd's gRPC socket, for the calls of tests that do not test ctr.

A start of ctr takes 12 ms of processor time, and a call here 3 ms.  Each method opens a
connection, since a test kills and starts containerd between any two.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from tests.e2e.waiting import PATIENCE
from tests.protos import Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_PROTOCOL = Protocol(Path(__file__).with_name("containerd.proto"))
_CALL = 30 * PATIENCE  # s; far more than any call takes on a busy machine
# By method: the service, the request and the reply.
_METHODS = {
    "ListTasks": ("tasks.v1.Tasks/List", "Empty", "ListTasksResponse"),
    "Kill": ("tasks.v1.Tasks/Kill", "KillRequest", "Empty"),
    "DeleteTask": ("tasks.v1.Tasks/Delete", "DeleteProcessRequest", "DeleteResponse"),
    "DeleteProcess": ("tasks.v1.Tasks/DeleteProcess", "DeleteProcessRequest", "DeleteResponse"),
    "ListContainers": ("containers.v1.Containers/List", "Empty", "ListContainersResponse"),
    "GetContainer": ("containers.v1.Containers/Get", "ContainerRequest", "ContainerResponse"),
    "DeleteContainer": ("containers.v1.Containers/Delete", "ContainerRequest", "Empty"),
    "RemoveSnapshot": ("snapshots.v1.Snapshots/Remove", "RemoveSnapshotRequest", "Empty"),
}


@dataclass(frozen=True)
class Task:
    """A task; ``stdio`` are the paths or URIs of its streams, empty for those it has not."""

    pid: int
    state: str
    stdio: tuple[str, ...]


@dataclass(frozen=True)
class Api:
    address: Path
    namespace: str

    def tasks(self) -> dict[str, Task]:
        """Return the tasks by the ids of their containers."""

        async def ask(call: Callable[..., Awaitable[Any]]) -> Any:
            return (await call("ListTasks")).tasks

        return {
            task.id: Task(
                task.pid,
                _PROTOCOL.value_name("Status", task.status),
                (task.stdin, task.stdout, task.stderr),
            )
            for task in self._run(ask)
        }

    def kill(self, container: str, number: int, exec_id: str = "") -> None:
        """Send a signal.

        :raises grpclib.GRPCError: containerd refuses it.
        """

        async def ask(call: Callable[..., Awaitable[Any]]) -> None:
            await call("Kill", container_id=container, exec_id=exec_id, signal=number)

        self._run(ask)

    def delete_exec(self, container: str, exec_id: str) -> int | None:
        """Delete an exec; return its exit code, or None while it runs.

        :raises grpclib.GRPCError: containerd refuses it for another reason.
        """

        async def ask(call: Callable[..., Awaitable[Any]]) -> int | None:
            try:
                reply = await call("DeleteProcess", container_id=container, exec_id=exec_id)
            except GRPCError as exc:
                if exc.status is Status.FAILED_PRECONDITION:
                    return None
                raise
            return int(reply.exit_status)

        found: int | None = self._run(ask)
        return found

    def delete(self, container: str) -> int:
        """Delete a stopped task with its container and its snapshot; return the exit code.

        :raises grpclib.GRPCError: containerd refuses it.
        """

        async def ask(call: Callable[..., Awaitable[Any]]) -> int:
            code = (await call("DeleteTask", container_id=container)).exit_status
            found = (await call("GetContainer", id=container)).container
            await _remove(call, found)
            return int(code)

        code: int = self._run(ask)
        return code

    def delete_containers(self) -> None:
        """Delete all containers, which have no tasks, with their snapshots."""

        async def ask(call: Callable[..., Awaitable[Any]]) -> None:
            for container in (await call("ListContainers")).containers:
                await _remove(call, container)

        self._run(ask)

    def _run(self, ask: Callable[[Callable[..., Awaitable[Any]]], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            metadata = {"containerd-namespace": self.namespace}
            async with Channel(path=str(self.address)) as channel:

                async def call(name: str, **fields: Any) -> Any:
                    path, request, reply = _METHODS[name]
                    classes = _PROTOCOL.message(request), _PROTOCOL.message(reply)
                    path = f"/containerd.services.{path}"
                    method = UnaryUnaryMethod(channel, path, *classes)
                    return await method(classes[0](**fields), timeout=_CALL, metadata=metadata)

                return await ask(call)

        return asyncio.run(main())


async def _remove(call: Callable[..., Awaitable[Any]], container: Any) -> None:
    if container.snapshot_key:
        names = {"snapshotter": container.snapshotter, "key": container.snapshot_key}
        await call("RemoveSnapshot", **names)
    await call("DeleteContainer", id=container.id)
