"""Pause and Resume: the state of a paused container, and the calls that it accepts and refuses,
with each status.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api import process_pb2
from shim.api.task_pb2 import (
    DeleteRequest,
    KillRequest,
    PauseRequest,
    PidsRequest,
    ResumeRequest,
    StartRequest,
    StateRequest,
    StatsRequest,
    WaitRequest,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from shim.api.task_grpc import TaskStub
    from tests.process.rig import Rig

pytestmark = pytest.mark.e2e
COUNT = "i=0; while true; do i=$((i+1)); echo $i >/NAME; sleep 0.02; done"


async def refused(call: Awaitable[object], status: Status = Status.FAILED_PRECONDITION) -> None:
    with pytest.raises(GRPCError) as caught:
        await call
    assert caught.value.status is status
    assert caught.value.message


def pause(task: TaskStub, id_: str = "c1") -> Awaitable[object]:
    return task.Pause(PauseRequest(id=id_), timeout=10)


def resume(task: TaskStub, id_: str = "c1") -> Awaitable[object]:
    return task.Resume(ResumeRequest(id=id_), timeout=10)


async def status(task: TaskStub, exec_id: str = "") -> int:
    return (await task.State(StateRequest(id="c1", exec_id=exec_id), timeout=5)).status


async def test_only_a_running_container_is_paused_and_only_a_paused_one_resumed(
    rig: Rig,
) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await task.Create(rig.create_request(bundle), timeout=20)
    await refused(pause(task))
    await refused(resume(task))
    assert await status(task) == process_pb2.CREATED
    await task.Start(StartRequest(id="c1"), timeout=10)
    await refused(resume(task))
    assert await status(task) == process_pb2.RUNNING
    await pause(task)
    await refused(pause(task))
    assert await status(task) == process_pb2.PAUSED
    await refused(task.Delete(DeleteRequest(id="c1"), timeout=10))
    await refused(task.Start(StartRequest(id="c1"), timeout=10))
    await resume(task)
    await task.Kill(KillRequest(id="c1", signal=9), timeout=5)
    await task.Wait(WaitRequest(id="c1"), timeout=10)
    await refused(pause(task))
    await refused(resume(task))
    assert await status(task) == process_pb2.STOPPED
    await task.Delete(DeleteRequest(id="c1"), timeout=10)
    await refused(pause(task), Status.NOT_FOUND)
    await refused(resume(task), Status.NOT_FOUND)
    await rig.sink.wait_for("delete")
    # A refused call published no event.
    assert rig.sink.names() == ["create", "start", "paused", "resumed", "exit c1", "delete"]


def _count(rig: Rig, name: str) -> int:
    try:
        return int((rig.rootfs() / name).read_text() or "0")
    except FileNotFoundError:
        return 0


async def _counts_on(rig: Rig, name: str) -> None:
    before = _count(rig, name)
    with trio.fail_after(20):
        while _count(rig, name) <= before:
            await trio.sleep(0.005)


async def test_init_and_execs_stand_still_together_and_go_on_together(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sh", "-c", COUNT.replace("NAME", "init"))
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    script = COUNT.replace("NAME", "exec")
    await task.Exec(rig.exec_request("c1", "e1", "sh", "-c", script), timeout=5)
    await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=10)
    await task.Exec(rig.exec_request("c1", "late", "true"), timeout=5)
    for _ in range(5):
        for name in ("init", "exec"):
            await _counts_on(rig, name)
        await pause(task)
        before = [_count(rig, name) for name in ("init", "exec")]
        assert [await status(task, e) for e in ("", "e1", "late")] == [
            *(process_pb2.PAUSED, process_pb2.PAUSED, process_pb2.CREATED)
        ]
        # State and Pids are still answered.
        assert len((await task.Pids(PidsRequest(id="c1"), timeout=5)).processes) >= 2
        assert (await task.Stats(StatsRequest(id="c1"), timeout=5)).stats.value
        assert [_count(rig, name) for name in ("init", "exec")] == before
        # An exec of before cannot start now; refused, it can later.
        await refused(task.Start(StartRequest(id="c1", exec_id="late"), timeout=10))
        await resume(task)
        assert await status(task, "e1") == process_pb2.RUNNING
    await task.Start(StartRequest(id="c1", exec_id="late"), timeout=10)
    waited = await task.Wait(WaitRequest(id="c1", exec_id="late"), timeout=10)
    assert waited.exit_status == 0
    names = [name for name in rig.sink.names() if name in ("paused", "resumed")]
    assert names == ["paused", "resumed"] * 5


async def test_a_signal_to_a_paused_exec_counts_once_it_goes_on(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    await task.Exec(rig.exec_request("c1", "e1", "sleep", "1000"), timeout=5)
    await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=10)
    await pause(task)
    await task.Kill(KillRequest(id="c1", exec_id="e1", signal=15), timeout=5)
    assert await status(task, "e1") == process_pb2.PAUSED
    await resume(task)
    waited = await task.Wait(WaitRequest(id="c1", exec_id="e1"), timeout=10)
    assert waited.exit_status == 128 + 15
    assert await status(task) == process_pb2.RUNNING


async def test_of_two_callers_at_once_the_state_says_what_came_of_it(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sh", "-c", COUNT.replace("NAME", "init"))
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    done: list[str] = []
    refusals: set[Status] = set()

    async def attempt(name: str, call: Awaitable[object]) -> None:
        try:
            await call
        except GRPCError as exc:
            refusals.add(exc.status)
        else:
            done.append(name)

    for _ in range(5):
        for name, one in (("paused", pause), ("resumed", resume)):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(attempt, name, one(task))
            if name == "paused":
                assert await status(task) == process_pb2.PAUSED
                assert await _stands_still(rig)
            else:
                assert await status(task) == process_pb2.RUNNING
                await _counts_on(rig, "init")
    await rig.sink.wait_for("resumed")
    assert done == ["paused", "resumed"] * 5
    assert refusals == {Status.FAILED_PRECONDITION}
    assert rig.sink.names()[2:] == done
    await task.Kill(KillRequest(id="c1", signal=9), timeout=10)
    assert (await task.Wait(WaitRequest(id="c1"), timeout=10)).exit_status == 137


async def _stands_still(rig: Rig) -> bool:
    """Return whether the count stays the same for ten times the period of one increment."""
    with trio.move_on_after(0.2) as scope:
        await _counts_on(rig, "init")
    return scope.cancelled_caught
