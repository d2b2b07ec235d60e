"""Calls that must be answered, and threads that wait, while a disk hangs."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from shim.api.task_pb2 import (
    DeleteRequest,
    PidsRequest,
    StartRequest,
    StateRequest,
    StatsRequest,
    WaitRequest,
)
from tests.e2e.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shim.api.task_grpc import TaskStub
    from tests.process.rig import Rig

# The longest time of a call, in seconds, while a disk hangs and the machine is busy.
SOON = 2.0


@contextmanager
def soon(what: str) -> Iterator[None]:
    before = time.monotonic()
    yield
    took = time.monotonic() - before
    assert took < SOON * PATIENCE, f"{what} took {took:.2f} s"


async def answers(rig: Rig, task: TaskStub, id_: str, number: int) -> None:
    """Have every kind of call answered for a container, exec and kill included."""
    with soon("State"):
        await task.State(StateRequest(id=id_), timeout=5)
    with soon("Pids"):
        await task.Pids(PidsRequest(id=id_), timeout=5)
    with soon("Stats"):
        await task.Stats(StatsRequest(id=id_), timeout=5)
    exec_id = f"e{number}"
    with soon("an exec"):
        await task.Exec(rig.exec_request(id_, exec_id, "sh", "-c", "exit 3"), timeout=5)
        await task.Start(StartRequest(id=id_, exec_id=exec_id), timeout=5)
        ended = await task.Wait(WaitRequest(id=id_, exec_id=exec_id), timeout=5)
        await task.Delete(DeleteRequest(id=id_, exec_id=exec_id), timeout=5)
    assert ended.exit_status == 3


async def wait_thread_stuck(pid: int) -> None:
    """Wait until a thread of ``pid``, but not its first, waits for a disk."""
    with trio.fail_after(10 * PATIENCE):
        while True:
            for task in os.listdir(f"/proc/{pid}/task"):
                with suppress(FileNotFoundError, ProcessLookupError):  # another thread has ended
                    stat = Path(f"/proc/{pid}/task/{task}/stat").read_text()
                    if int(task) != pid and stat.rpartition(")")[2].split()[0] == "D":
                        return
            await trio.sleep(0.01)
