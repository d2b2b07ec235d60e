"""The order of events, and the exit of each process, with real runc containers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api import process_pb2
from shim.api.options_pb2 import ProcessDetails
from shim.api.task_pb2 import (
    DeleteRequest,
    KillRequest,
    PauseRequest,
    PidsRequest,
    ResumeRequest,
    StartRequest,
    StateRequest,
    UpdateTaskRequest,
    WaitRequest,
)
from shim.cgroup.find import cgroup_of
from shim.cgroup.v1 import CgroupV1
from tests.process.configs import host_pids
from tests.process.rig import RESOURCES_URL, Rig, alive, wait_gone
from tests.process.steps import run_until_told

if TYPE_CHECKING:
    from shim.api.task_grpc import TaskStub


async def test_a_life_is_told_in_order(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    created = await rig.run(task, bundle)
    await task.Exec(rig.exec_request("c1", "e1", "sh", "-c", "exit 3"), timeout=5)
    started = await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=10)
    waited = await task.Wait(WaitRequest(id="c1", exec_id="e1"), timeout=10)
    assert waited.exit_status == 3
    await task.Pause(PauseRequest(id="c1"), timeout=5)
    await task.Resume(ResumeRequest(id="c1"), timeout=5)
    await task.Kill(KillRequest(id="c1", signal=9), timeout=5)
    waited = await task.Wait(WaitRequest(id="c1"), timeout=10)
    assert waited.exit_status == 137
    deleted = await task.Delete(DeleteRequest(id="c1"), timeout=10)
    assert (deleted.pid, deleted.exit_status) == (created.pid, 137)
    assert deleted.exited_at == waited.exited_at
    await rig.sink.wait_for("delete")
    assert rig.sink.names() == [
        *("create", "start", "exec-added", "exec-started", "exit e1"),
        *("paused", "resumed", "exit c1", "delete"),
    ]
    exits = [e for e in rig.sink.events if hasattr(e, "exit_status") and e.id]
    assert [(e.id, e.pid, e.exit_status) for e in exits] == [
        ("e1", started.pid, 3),
        ("c1", created.pid, 137),
    ]


async def test_a_runtime_that_never_returns_ends_with_the_callers_deadline(rig: Rig) -> None:
    """The container is gone then, its id is free, and nothing of it is left."""
    wrapper = rig.wrapper(
        "stuck",
        """runc "$@"; status=$?
case " $* " in *" create "*) exec sleep 1000;; esac
exit $status""",
    )
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    request = rig.create_request(bundle, options=rig.options(binary_name=wrapper))
    with pytest.raises(GRPCError) as caught:
        await task.Create(request, timeout=1)
    assert caught.value.status is Status.DEADLINE_EXCEEDED
    with trio.fail_after(15):
        # The caller's own clock answered it; the clean-up may still be under way.
        while not await created(rig, task, bundle):
            await trio.sleep(0.05)
    await task.Start(StartRequest(id="c1"), timeout=10)
    pid = (await task.State(StateRequest(id="c1"), timeout=5)).pid
    assert alive(pid)


async def created(rig: Rig, task: TaskStub, bundle: Path) -> bool:
    """Return whether Create succeeded; while the id is in use it cannot."""
    try:
        await task.Create(rig.create_request(bundle), timeout=30)
    except GRPCError as exc:
        if exc.status is not Status.ALREADY_EXISTS:
            raise
        return False
    return True


async def test_pids_names_the_execs_and_is_never_empty(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    created = await rig.run(task, bundle)
    await task.Exec(rig.exec_request("c1", "e1", "sleep", "1000"), timeout=5)
    started = await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=10)
    reply = await task.Pids(PidsRequest(id="c1"), timeout=5)
    infos: dict[int, Any] = {p.pid: p for p in reply.processes}
    assert set(infos) == {created.pid, started.pid}
    details = ProcessDetails()
    assert infos[started.pid].info.type_url == "containerd.runc.v1.ProcessDetails"
    details.ParseFromString(infos[started.pid].info.value)
    assert details.exec_id == "e1"
    assert not infos[created.pid].HasField("info")


async def test_a_paused_container_and_its_execs_report_paused_and_can_be_killed(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    await task.Exec(rig.exec_request("c1", "e1", "sleep", "1000"), timeout=5)
    await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=10)
    await task.Pause(PauseRequest(id="c1"), timeout=5)
    for exec_id in ("", "e1"):
        state = await task.State(StateRequest(id="c1", exec_id=exec_id), timeout=5)
        assert state.status == process_pb2.PAUSED
    with pytest.raises(GRPCError) as caught:
        await task.Exec(rig.exec_request("c1", "e2", "true"), timeout=5)
    assert caught.value.status is Status.FAILED_PRECONDITION
    await task.Kill(KillRequest(id="c1", signal=9), timeout=5)
    assert (await task.Wait(WaitRequest(id="c1"), timeout=10)).exit_status == 137


async def test_kill_all_reaches_every_process(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    await task.Exec(rig.exec_request("c1", "e1", "sleep", "1000"), timeout=5)
    await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=10)
    await task.Kill(KillRequest(id="c1", signal=9, all=True), timeout=5)
    for exec_id in ("e1", ""):
        waited = await task.Wait(WaitRequest(id="c1", exec_id=exec_id), timeout=10)
        assert waited.exit_status == 137


async def test_with_the_hosts_pid_namespace_nothing_outlives_init(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sh", "-c", "sleep 1000 & sleep 1000 & read x", change=host_pids)
    task, go, pids = await run_until_told(rig, bundle, 4)
    go()
    await task.Wait(WaitRequest(id="c1"), timeout=20)
    await rig.sink.wait_for("exit c1")
    names = rig.sink.names()
    assert names.index("exit e1") < names.index("exit c1")
    await wait_gone(pids, 5)


async def test_an_update_changes_the_limit(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    request = UpdateTaskRequest(id="c1")
    request.resources.type_url = RESOURCES_URL
    request.resources.value = json.dumps({"pids": {"limit": 77}}).encode()
    await task.Update(request, timeout=10)
    cgroup = cgroup_of((await task.State(StateRequest(id="c1"))).pid)
    directory = cgroup.directories["pids"] if isinstance(cgroup, CgroupV1) else cgroup.directory
    assert (Path(directory) / "pids.max").read_text() == "77\n"


async def test_an_oom_kill_is_told_before_the_exit_and_left_in_a_file(rig: Rig) -> None:
    def small(config: dict[str, Any]) -> None:
        config["linux"]["resources"]["memory"] = {"limit": 16 << 20}

    bundle = rig.bundle("c1", "sh", "-c", "x=x; while :; do x=$x$x; done", change=small)
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    assert (await task.Wait(WaitRequest(id="c1"), timeout=30)).exit_status == 137
    await rig.sink.wait_for("exit c1")
    assert rig.sink.names() == ["create", "start", "oom", "exit c1"]
    assert (bundle / "oom").exists()
