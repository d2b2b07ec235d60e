"""Calls of a shim that an oracle checks, and its verdict at the end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpclib.exceptions import GRPCError

from shim.api.task_pb2 import DeleteRequest, KillRequest, StartRequest, WaitRequest
from tests.process.oracle import Oracle
from tests.process.rig import NAMESPACE

if TYPE_CHECKING:
    from shim.api.task_grpc import TaskStub
    from shim.api.task_pb2 import DeleteResponse, WaitResponse
    from tests.process.rig import Rig


class Driven:
    """Drives the shim behind ``task``; several may share the rig, and its oracle."""

    def __init__(self, rig: Rig, task: TaskStub, oracle: Oracle | None = None) -> None:
        self.rig = rig
        self.task = task
        self.oracle = oracle or Oracle(NAMESPACE)

    async def create(self, bundle: Path, **fields: Any) -> int:
        request = self.rig.create_request(bundle, **fields)
        return (await self.task.Create(request, timeout=120)).pid

    async def start(self, id_: str, exec_id: str = "", timeout: float = 120) -> int:
        request = StartRequest(id=id_, exec_id=exec_id)
        pid = (await self.task.Start(request, timeout=timeout)).pid
        self.oracle.started(id_, exec_id, pid, time.time_ns())
        return pid

    async def run(self, bundle: Path, **fields: Any) -> int:
        """Create and start."""
        await self.create(bundle, **fields)
        return await self.start(bundle.name)

    async def add(self, id_: str, exec_id: str, *args: str, **fields: Any) -> None:
        request = self.rig.exec_request(id_, exec_id, *args, **fields)
        await self.task.Exec(request, timeout=60)

    async def exec(self, id_: str, exec_id: str, *args: str, **fields: Any) -> int:
        """Add and start."""
        await self.add(id_, exec_id, *args, **fields)
        return await self.start(id_, exec_id)

    async def wait(self, id_: str, exec_id: str = "") -> WaitResponse:
        reply = await self.task.Wait(WaitRequest(id=id_, exec_id=exec_id), timeout=60)
        self.oracle.ended("Wait", id_, exec_id, reply.exit_status, reply.exited_at)
        return reply

    async def delete(self, id_: str, exec_id: str = "") -> DeleteResponse:
        """Delete; the oracle does not check the reply for an exec that never ran."""
        reply = await self.task.Delete(DeleteRequest(id=id_, exec_id=exec_id), timeout=60)
        if reply.pid:
            status, at = reply.exit_status, reply.exited_at
            self.oracle.ended("Delete", id_, exec_id, status, at, reply.pid)
        return reply

    async def kill(self, id_: str, exec_id: str = "", number: int = 9, **fields: Any) -> None:
        request = KillRequest(id=id_, exec_id=exec_id, signal=number, **fields)
        await self.task.Kill(request, timeout=20)

    async def end(self, id_: str, number: int = 9) -> int:
        """Kill a container and delete it; return its exit status."""
        await self.kill(id_, number=number)
        status = (await self.wait(id_)).exit_status
        await self.delete(id_)
        return status

    async def life_of_exec(self, id_: str, exec_id: str, code: int) -> int:
        """Run a process that ends with ``code``, see that it did, and return its pid."""
        pid = await self.exec(id_, exec_id, "sh", "-c", f"exit {code}")
        assert (await self.wait(id_, exec_id)).exit_status == code
        deleted = await self.delete(id_, exec_id)
        assert (deleted.pid, deleted.exit_status) == (pid, code)
        return pid

    async def try_exec(self, id_: str, exec_id: str, *args: str) -> bool:
        """Add and start an exec that init's exit may precede; return whether it started."""
        try:
            await self.exec(id_, exec_id, *args)
        except GRPCError:
            return False
        return True


async def verdict(rig: Rig, oracle: Oracle, *ids: str) -> None:
    """Wait for the delete events of ``ids``, and have the oracle check all events."""
    for id_ in ids:
        await rig.sink.wait_for("delete", id_)
    for envelope in rig.sink.envelopes:
        oracle.tell(envelope)
    oracle.finish()


def groups(rig: Rig) -> list[Path]:
    """Find the control groups of the rig's containers, in either version."""
    top, name = Path("/sys/fs/cgroup"), f"trio-shim-test/{rig.root.name}-*"
    return [*top.glob(name), *top.glob(f"*/{name}")]
