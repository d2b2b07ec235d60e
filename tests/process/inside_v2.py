"""What test_cgroup_v2 runs in a mount namespace where /sys/fs/cgroup is version 2.

Each check has its own shim and containers; "ok" is printed at the end.
On a hybrid host few controllers are there: limits are for a machine of version 2.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from grpclib.exceptions import GRPCError

from shim.api import process_pb2
from shim.api.cgroups_v2_pb2 import Metrics
from shim.api.options_pb2 import Options, ProcessDetails
from shim.api.task_pb2 import (
    DeleteRequest,
    KillRequest,
    PauseRequest,
    PidsRequest,
    ResumeRequest,
    StartRequest,
    StateRequest,
    StatsRequest,
    UpdateTaskRequest,
    WaitRequest,
)
from shim.cgroup.find import cgroup_of
from shim.cgroup.v2 import CgroupV2
from tests.process.rig import RESOURCES_URL, Rig, open_rig, wait_gone

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from shim.api.task_grpc import TaskStub

TOP = Path("/sys/fs/cgroup")


def group_of(pid: int) -> Path:
    cgroup = cgroup_of(pid)
    assert isinstance(cgroup, CgroupV2), cgroup
    return Path(cgroup.directory)


async def pids(task: TaskStub) -> dict[int, str]:
    """Return the exec ids of all processes, by pid."""
    found = {}
    for info in (await task.Pids(PidsRequest(id="c1"), timeout=5)).processes:
        details = ProcessDetails.FromString(info.info.value)
        found[info.pid] = details.exec_id
    return found


async def running(rig: Rig, *args: str) -> tuple[TaskStub, int, int]:
    """Run a container and an exec in it; return their pids."""
    bundle = rig.bundle("c1", *(args or ("sleep", "1000")))
    task = await rig.start(bundle)
    init = (await rig.run(task, bundle)).pid
    await task.Exec(rig.exec_request("c1", "e1", "sleep", "1000"), timeout=5)
    started = await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=10)
    return task, init, started.pid


async def end(rig: Rig, task: TaskStub, group: Path) -> None:
    """End everything that is left and see that all of it is gone."""
    for exec_id in ("e1", ""):
        waited = await task.Wait(WaitRequest(id="c1", exec_id=exec_id), timeout=10)
        assert waited.exit_status == 137
    await task.Delete(DeleteRequest(id="c1"), timeout=10)
    assert not group.exists()
    await rig.sink.wait_for("delete")
    assert rig.sink.names()[-3:] == ["exit e1", "exit c1", "delete"]


async def check_a_whole_life(rig: Rig) -> None:
    task, init, exec_ = await running(rig)
    group = group_of(init)
    assert group.is_relative_to(TOP)
    assert await pids(task) == {init: "", exec_: "e1"}
    await task.Pause(PauseRequest(id="c1"), timeout=10)
    assert (group / "cgroup.freeze").read_text() == "1\n"
    for exec_id in ("", "e1"):
        state = await task.State(StateRequest(id="c1", exec_id=exec_id), timeout=5)
        assert state.status == process_pb2.PAUSED
    assert await pids(task) == {init: "", exec_: "e1"}
    await task.Resume(ResumeRequest(id="c1"), timeout=10)
    assert (group / "cgroup.freeze").read_text() == "0\n"
    await task.Kill(KillRequest(id="c1", signal=9, all=True), timeout=5)
    await end(rig, task, group)


async def check_a_paused_container_is_killed(rig: Rig) -> None:
    task, init, _ = await running(rig)
    group = group_of(init)
    await task.Pause(PauseRequest(id="c1"), timeout=10)
    await task.Kill(KillRequest(id="c1", signal=9), timeout=5)
    await end(rig, task, group)


async def check_metrics(rig: Rig) -> None:
    busy = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exec sleep 1000"
    task, init, exec_ = await running(rig, "sh", "-c", busy)
    group = group_of(init)
    with trio.fail_after(20):
        while Path(f"/proc/{init}/comm").read_text() != "sleep\n":
            await trio.sleep(0.01)

    def counters() -> dict[str, int]:
        lines = (group / "cpu.stat").read_text().splitlines()
        return {name: int(value) for name, value in map(str.split, lines)}

    before = counters()
    packed = (await task.Stats(StatsRequest(id="c1"), timeout=5)).stats
    after = counters()
    assert packed.type_url == "io.containerd.cgroups.v2.Metrics"
    metrics = Metrics.FromString(packed.value)
    # The start of sleep may still use the processor between two of these.
    for name in ("usage_usec", "user_usec", "system_usec"):
        assert before[name] <= getattr(metrics.cpu, name) <= after[name], name
    assert metrics.cpu.usage_usec > 0
    offered = (TOP / "cgroup.controllers").read_text().split()
    assert (group / "cgroup.controllers").read_text().split() == offered
    for huge in metrics.hugetlb:
        for name, field in (("current", huge.current), ("max", huge.max)):
            text = (group / f"hugetlb.{huge.pagesize}.{name}").read_text().strip()
            assert str(field) == text.replace("max", str(2**64 - 1))
    assert bool(metrics.hugetlb) == ("hugetlb" in offered)
    if "pids" in offered:
        assert metrics.pids.current == 2
    if "memory" in offered:
        assert metrics.memory.usage > 0
    assert exec_ in await pids(task)


async def check_an_update_reaches_the_file(rig: Rig) -> None:
    task, init, _ = await running(rig)
    group = group_of(init)
    if "hugetlb" not in (group / "cgroup.controllers").read_text():
        return
    # The one way to a file that runc has no name for.
    unified = {"hugetlb.2MB.max": str(4 << 20)}
    request = UpdateTaskRequest(id="c1")
    request.resources.type_url = RESOURCES_URL
    request.resources.value = json.dumps({"unified": unified}).encode()
    await task.Update(request, timeout=10)
    assert (group / "hugetlb.2MB.max").read_text() == f"{4 << 20}\n"
    unified["no.such.file"] = "1"
    request.resources.value = json.dumps({"unified": unified}).encode()
    with pytest.raises(GRPCError) as caught:
        await task.Update(request, timeout=10)
    assert (caught.value.message or "").startswith("OCI runtime update failed: ")
    assert await pids(task)


async def check_groups_below(rig: Rig) -> None:
    """A container with writable cgroups has moved all its processes out of its cgroup."""
    task, init, exec_ = await running(rig)
    group = group_of(init)
    for name, pid in (("one", init), ("two/deep", exec_)):
        (group / name).mkdir(parents=True)
        (group / name / "cgroup.procs").write_text(str(pid))
    assert (group / "cgroup.procs").read_text() == ""
    assert await pids(task) == {init: "", exec_: "e1"}
    # An exec that comes later is one of them too.
    await task.Exec(rig.exec_request("c1", "e2", "sleep", "1000"), timeout=5)
    later = (await task.Start(StartRequest(id="c1", exec_id="e2"), timeout=10)).pid
    assert await pids(task) == {init: "", exec_: "e1", later: "e2"}
    await task.Kill(KillRequest(id="c1", signal=9, all=True), timeout=5)
    await wait_gone([init, exec_, later])
    await task.Wait(WaitRequest(id="c1", exec_id="e2"), timeout=10)
    await task.Wait(WaitRequest(id="c1"), timeout=10)
    # Its end is not its disappearance: containerd would forget the exit status.
    assert list(await pids(task)) == [init]
    await task.Delete(DeleteRequest(id="c1"), timeout=10)
    assert not group.exists()


async def check_the_shims_own_group(rig: Rig) -> None:
    path = f"/{rig.root.name}-shim/below"
    (TOP / path[1:]).mkdir(parents=True)
    value = Options(shim_cgroup=path).SerializeToString()
    options = AnyMessage(type_url="containerd.runc.v1.Options", value=value)
    bundle = rig.bundle("c1", "sleep", "1000")
    try:
        task = await rig.start(bundle, stdin=options.SerializeToString())
        assert group_of(rig.daemons[0]) == TOP / path[1:]
        created = await rig.run(task, bundle)
        assert not group_of(created.pid).is_relative_to(TOP / path[1:])
        assert await pids(task) == {created.pid: ""}
    finally:
        await rig.end()
        for directory in (TOP / path[1:], (TOP / path[1:]).parent):
            directory.rmdir()


CHECKS: dict[str, Callable[[Rig], Awaitable[None]]] = {
    "a whole life": check_a_whole_life,
    "a paused container is killed": check_a_paused_container_is_killed,
    "metrics": check_metrics,
    "an update reaches the file": check_an_update_reaches_the_file,
    "groups below": check_groups_below,
    "the shim's own group": check_the_shims_own_group,
}


async def main(name: str) -> None:
    async with open_rig() as rig:
        await CHECKS[name](rig)
    print("ok")


if __name__ == "__main__":
    trio.run(main, sys.argv[1], strict_exception_groups=True)
