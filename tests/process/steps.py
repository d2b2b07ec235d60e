"""Steps that several tests take beside or between the calls of a manager."""

from __future__ import annotations

import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio
import trio.testing

from shim.api.task_grpc import TaskStub
from shim.api.task_pb2 import PidsRequest, StartRequest, WaitRequest, WaitResponse
from shim.linux.sockets import connect
from shim.ttrpc.client import open_channel
from tests.e2e.waiting import PATIENCE
from tests.process.rig import Rig, wait_gone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import Any


async def wait_path(path: Path, seconds: float = 20) -> None:
    """Wait until ``path`` exists."""
    with trio.fail_after(seconds * PATIENCE):
        while not path.exists():
            await trio.sleep(0.01)


async def wait_trapped(pid: int) -> None:
    """Wait until a shell's trap of SIGTERM is set: until then the signal ends the shell.

    The runtime's program, which it was before, has a handler of each signal.
    """
    with trio.fail_after(20 * PATIENCE):
        while True:
            status = Path(f"/proc/{pid}/status").read_text()
            caught = int(status.partition("\nSigCgt:")[2].split()[0], 16)
            if not status.startswith("Name:\trunc") and caught >> signal.SIGTERM - 1 & 1:
                return
            await trio.sleep(0.01)


async def wait_processes(task: TaskStub, count: int, id_: str = "c1") -> list[int]:
    """Wait until the container has ``count`` processes; return their pids."""
    with trio.fail_after(10 * PATIENCE):
        while True:
            reply = await task.Pids(PidsRequest(id=id_), timeout=5)
            if len(reply.processes) >= count:
                return [process.pid for process in reply.processes]
            await trio.sleep(0.01)


async def kill_daemon(rig: Rig) -> None:
    """Kill the daemon that was connected to last, and wait until it is gone."""
    os.kill(rig.daemons[-1], signal.SIGKILL)
    await wait_gone(rig.daemons)


async def lose_call(
    rig: Rig,
    call: Callable[[TaskStub], Callable[[Any], Awaitable[object]]],
    request: Any,
    mark: Path,
) -> None:
    """Make a call over a separate connection, and close that once ``mark`` exists."""
    async with (
        open_channel(await connect(rig.address)) as channel,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(call(TaskStub(channel)), request)
        await wait_path(mark)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def waiting_for_exec(task: TaskStub, exec_id: str) -> AsyncIterator[list[WaitResponse]]:
    """Wait for an exec of c1 beside the block; the list gets the reply.

    The block begins when the daemon has the request.  Its end waits for the reply.
    """
    waited: list[WaitResponse] = []

    async def wait() -> None:
        request = WaitRequest(id="c1", exec_id=exec_id)
        waited.append(await task.Wait(request, timeout=20))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        yield waited


async def run_until_told(
    rig: Rig, bundle: Path, count: int
) -> tuple[TaskStub, Callable[[], object], list[int]]:
    """Run c1, with a script that reads a line, and the exec e1 that sleeps.

    Return the client, a function that sends the line, and the pids of the container once
    it has ``count`` processes.
    """
    fifo = rig.root / "in"
    os.mkfifo(fifo)
    task = await rig.start(bundle)
    await rig.run(task, bundle, stdin=str(fifo))
    await task.Exec(rig.exec_request("c1", "e1", "sleep", "1000"), timeout=5)
    await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=10)
    pids = await wait_processes(task, count)
    return task, lambda: fifo.write_text("go\n"), pids
