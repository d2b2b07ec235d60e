"""Processes a container has moved about, and those it shares a pid namespace with.

A container with writable cgroups puts its processes into groups that it makes; a pod's
containers may share the pid namespace of one of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shim.api import process_pb2
from shim.api.task_pb2 import (
    DeleteRequest,
    KillRequest,
    PidsRequest,
    StartRequest,
    StateRequest,
    StatsRequest,
    WaitRequest,
)
from shim.cgroup.find import cgroup_of
from shim.cgroup.v1 import CgroupV1
from tests.process.configs import pids_of
from tests.process.rig import Rig, alive, wait_gone
from tests.process.steps import wait_processes

if TYPE_CHECKING:
    from shim.api.task_grpc import TaskStub

pytestmark = pytest.mark.e2e


async def pids(task: TaskStub, id_: str = "c1") -> list[int]:
    reply = await task.Pids(PidsRequest(id=id_), timeout=5)
    return [process.pid for process in reply.processes]


def move(pid: int, name: str) -> list[Path]:
    """Move ``pid`` into a group below its own, in every hierarchy."""
    cgroup = cgroup_of(pid)
    if not isinstance(cgroup, CgroupV1):
        pytest.skip("tests/process/test_cgroup_v2.py does this on version 2")
    groups = [Path(one) / name for one in dict.fromkeys(cgroup.directories.values())]
    for group in groups:
        group.mkdir(parents=True, exist_ok=True)
        if group.parts[4] == "cpuset":
            for file in ("cpuset.cpus", "cpuset.mems"):
                (group / file).write_text((group.parent / file).read_text())
        (group / "cgroup.procs").write_text(str(pid))
    return groups


async def test_processes_in_groups_below_are_listed_and_killed_with_the_rest(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sh", "-c", "sleep 1000 & sleep 1000 & exec sleep 1000")
    task = await rig.start(bundle)
    created = await rig.run(task, bundle)
    await task.Exec(rig.exec_request("c1", "e1", "sleep", "1000"), timeout=5)
    started = await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=10)
    everybody = await wait_processes(task, 4)
    groups: list[Path] = []
    for number, pid in enumerate(everybody):
        if pid != created.pid:
            groups += move(pid, f"child{number}")
    groups += move(created.pid, "init")
    assert all((group.parent / "cgroup.procs").read_text() == "" for group in groups)
    assert sorted(await pids(task)) == sorted(everybody)
    assert (await task.Stats(StatsRequest(id="c1"), timeout=5)).stats.value
    await task.Kill(KillRequest(id="c1", signal=9, all=True), timeout=5)
    await wait_gone(everybody)
    waited = await task.Wait(WaitRequest(id="c1", exec_id="e1"), timeout=10)
    assert (waited.exit_status, started.pid in everybody) == (137, True)
    await task.Wait(WaitRequest(id="c1"), timeout=10)
    # Ended is not vanished: containerd would forget the exit status.
    assert await pids(task) == [created.pid]
    await task.Delete(DeleteRequest(id="c1"), timeout=10)
    assert not any(group.parent.exists() for group in groups)


async def test_in_the_pid_namespace_of_another_container_only_the_own_are_killed(
    rig: Rig,
) -> None:
    first = rig.bundle("c1", "sh", "-c", "sleep 1000 & exec sleep 1000")
    task = await rig.start(first)
    pause = (await rig.run(task, first)).pid

    second = rig.bundle(
        "c2", "sh", "-c", "sleep 1000 & sleep 1000 & exec sleep 1000", change=pids_of(pause)
    )
    own = (await rig.run(task, second)).pid
    theirs, others = await wait_processes(task, 2), await wait_processes(task, 3, "c2")
    assert own in others
    assert not set(theirs) & set(others)
    await task.Kill(KillRequest(id="c2", signal=9), timeout=5)
    assert (await task.Wait(WaitRequest(id="c2"), timeout=10)).exit_status == 137
    await wait_gone(others)
    assert all(map(alive, theirs))
    state = await task.State(StateRequest(id="c1"), timeout=5)
    assert state.status == process_pb2.RUNNING
    await rig.sink.wait_for("exit c2", "c2")
    await task.Delete(DeleteRequest(id="c2"), timeout=10)


async def test_the_end_of_a_namespace_ends_the_containers_that_joined_it(rig: Rig) -> None:
    first = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(first)
    pause = (await rig.run(task, first)).pid

    second = rig.bundle("c2", "sleep", "1000", change=pids_of(pause))
    await rig.run(task, second)
    await task.Kill(KillRequest(id="c1", signal=9), timeout=5)
    for id_ in ("c1", "c2"):
        assert (await task.Wait(WaitRequest(id=id_), timeout=10)).exit_status == 137
        await task.Delete(DeleteRequest(id=id_), timeout=10)
        await rig.sink.wait_for("delete", id_)
        assert rig.sink.names(id_) == ["create", "start", f"exit {id_}", "delete"]
