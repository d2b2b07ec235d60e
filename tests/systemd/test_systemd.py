"""Containers with cgroups that systemd makes: runc's systemd_cgroup, on a host of cgroup
version 2.

It takes a machine that systemd runs.  The usual one of the tests is none, and there these
are skipped; a virtual machine, or a laptop, shows them: ``tests/run.sh tests/systemd``.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from grpclib.exceptions import GRPCError

from shim.api import process_pb2
from shim.api.cgroups_v2_pb2 import Metrics
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
from tests.process.rig import RESOURCES_URL, Rig, wait_gone
from tests.process.steps import kill_daemon

if TYPE_CHECKING:
    from shim.api.task_grpc import TaskStub

TOP = Path("/sys/fs/cgroup")
MEBI = 1 << 20
LIMIT = 48 * MEBI
EAT = "x=a; while :; do x=$x$x$x; done"

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(
        not Path("/run/systemd/system").exists()
        or not (TOP / "cgroup.controllers").exists()
        or os.geteuid() != 0,
        reason="this machine has no systemd as PID 1 with cgroup version 2, or this is not root",
    ),
]


class Scope:
    """The cgroup and the unit of one container of a rig."""

    def __init__(self, rig: Rig, id_: str = "c1") -> None:
        self.rig = rig
        self.id = id_
        self.unit = f"trio-{rig.root.name}-{id_}.scope"
        self.directory = TOP / "system.slice" / self.unit

    async def run(self, *args: str, memory: int = 64 * MEBI, task: TaskStub | None = None) -> int:
        """Run the container, in a new shim or in the one of ``task``; return its pid."""

        def change(config: dict[str, Any]) -> None:
            config["linux"]["cgroupsPath"] = f"system.slice:trio:{self.rig.root.name}-{self.id}"
            config["linux"]["resources"]["memory"] = {"limit": memory, "swap": memory}

        self.bundle = self.rig.bundle(self.id, *args, change=change)
        self.task = task or await self.rig.start(self.bundle)
        options = self.rig.options(systemd_cgroup=True)
        return (await self.rig.run(self.task, self.bundle, options=options)).pid

    def read(self, name: str) -> str:
        return (self.directory / name).read_text().strip()

    def property(self, name: str) -> str:
        """Return what systemd believes."""
        return systemctl("show", "--value", "-p", name, self.unit).strip()

    async def pids(self) -> set[int]:
        reply = await self.task.Pids(PidsRequest(id=self.id), timeout=10)
        return {process.pid for process in reply.processes}

    async def kill(self) -> None:
        await self.task.Kill(KillRequest(id=self.id, signal=9, all=True), timeout=10)

    async def end(self) -> int:
        """Delete the container, once it has ended, and see both gone; return its status."""
        waited = await self.task.Wait(WaitRequest(id=self.id), timeout=120)
        await self.task.Delete(DeleteRequest(id=self.id), timeout=20)
        await self.wait_gone()
        return waited.exit_status

    async def wait_gone(self) -> None:
        with trio.fail_after(120):
            while self.directory.exists() or self.property("LoadState") != "not-found":
                await trio.sleep(0.1)


def systemctl(*args: str) -> str:
    return subprocess.run(["systemctl", *args], check=True, capture_output=True, text=True).stdout


async def run_exec(scope: Scope, exec_id: str = "e1") -> int:
    request = scope.rig.exec_request(scope.id, exec_id, "sleep", "1000")
    await scope.task.Exec(request, timeout=10)
    started = await scope.task.Start(StartRequest(id=scope.id, exec_id=exec_id), timeout=20)
    return started.pid


async def test_init_and_execs_live_in_the_scope_and_the_shim_does_not(rig: Rig) -> None:
    scope = Scope(rig)
    init = await scope.run("sleep", "1000")
    exec_ = await run_exec(scope)
    assert await scope.pids() == {init, exec_}
    for pid in (init, exec_):
        assert Path(f"/proc/{pid}/cgroup").read_text() == f"0::/system.slice/{scope.unit}\n"
    assert scope.unit not in Path(f"/proc/{rig.daemons[0]}/cgroup").read_text()
    assert scope.property("ActiveState") == "active"
    await scope.kill()
    waited = await scope.task.Wait(WaitRequest(id="c1", exec_id="e1"), timeout=20)
    assert waited.exit_status == 137
    assert await scope.end() == 137
    await rig.sink.wait_for("delete")
    assert rig.sink.names()[-3:] == ["exit e1", "exit c1", "delete"]


async def test_the_metrics_are_the_scopes(rig: Rig) -> None:
    scope = Scope(rig)
    await scope.run("sh", "-c", "sleep 1000 & sleep 1000 & wait")
    with trio.fail_after(120):
        while len(await scope.pids()) < 3:
            await trio.sleep(0.1)
    packed = (await scope.task.Stats(StatsRequest(id="c1"), timeout=10)).stats
    assert packed.type_url == "io.containerd.cgroups.v2.Metrics"
    metrics = Metrics.FromString(packed.value)
    assert metrics.memory.usage_limit == 64 * MEBI
    assert 0 < metrics.memory.usage < 64 * MEBI
    assert metrics.pids.current == 3
    assert metrics.cpu.usage_usec > 0
    await scope.kill()
    assert await scope.end() == 137


async def test_an_update_reaches_the_kernel_and_systemd(rig: Rig) -> None:
    scope = Scope(rig)
    await scope.run("sleep", "1000")
    request = UpdateTaskRequest(id="c1")
    request.resources.type_url = RESOURCES_URL
    changes = {"memory": {"limit": 80 * MEBI}, "pids": {"limit": 77}}
    request.resources.value = json.dumps(changes).encode()
    await scope.task.Update(request, timeout=20)
    assert scope.read("memory.max") == scope.property("MemoryMax") == str(80 * MEBI)
    assert scope.read("pids.max") == scope.property("TasksMax") == "77"
    await scope.kill()
    assert await scope.end() == 137


async def test_a_paused_scope_can_be_resumed_and_killed(rig: Rig) -> None:
    scope = Scope(rig)
    await scope.run("sleep", "1000")
    for _ in range(2):
        await scope.task.Pause(PauseRequest(id="c1"), timeout=20)
        assert scope.read("cgroup.freeze") == "1"
        state = await scope.task.State(StateRequest(id="c1"), timeout=10)
        assert state.status == process_pb2.PAUSED
        await scope.task.Resume(ResumeRequest(id="c1"), timeout=20)
        assert scope.read("cgroup.freeze") == "0"
    await scope.task.Pause(PauseRequest(id="c1"), timeout=20)
    await scope.kill()
    assert await scope.end() == 137


async def test_groups_that_a_container_made_go_with_its_scope(rig: Rig) -> None:
    scope = Scope(rig)
    init = await scope.run("sleep", "1000")
    exec_ = await run_exec(scope)
    for name, pid in (("one", init), ("two/deep", exec_)):
        (scope.directory / name).mkdir(parents=True)
        (scope.directory / name / "cgroup.procs").write_text(str(pid))
    assert await scope.pids() == {init, exec_}
    await scope.kill()
    await wait_gone([init, exec_])
    assert await scope.end() == 137


async def test_init_killed_for_memory_is_told_before_its_exit_each_time(rig: Rig) -> None:
    # systemd removes the scope, and the counter in it, with the last process.
    task = None
    for number in range(6):
        scope = Scope(rig, f"c{number}")
        await scope.run("sh", "-c", EAT, memory=LIMIT, task=task)
        task = scope.task
        assert await scope.end() == 137
        await rig.sink.wait_for("delete", scope.id)
        assert rig.sink.names(scope.id) == ["create", "start", "oom", f"exit {scope.id}", "delete"]
        assert (scope.bundle / "oom").exists()


async def test_a_child_killed_for_memory_does_not_end_the_scope(rig: Rig) -> None:
    scope = Scope(rig)
    init = await scope.run("sh", "-c", f"({EAT}); exec sleep 1000", memory=LIMIT)
    await rig.sink.wait_for("oom", seconds=120)
    with trio.fail_after(120):
        while Path(f"/proc/{init}/comm").read_text() != "sleep\n":
            await trio.sleep(0.1)
    assert scope.property("ActiveState") == "active"
    await scope.kill()
    assert await scope.end() == 137
    await rig.sink.wait_for("delete")
    assert rig.sink.names().count("oom") == 1


async def test_a_scope_killed_through_systemd_is_an_ordinary_end(rig: Rig) -> None:
    scope = Scope(rig)
    await scope.run("sh", "-c", "sleep 1000 & wait")
    systemctl("kill", "--signal=KILL", scope.unit)
    assert await scope.end() == 137
    await rig.sink.wait_for("delete")
    assert rig.sink.names() == ["create", "start", "exit c1", "delete"]


async def test_what_a_crashed_shim_leaves_is_deleted_with_its_scope(rig: Rig) -> None:
    scope = Scope(rig)
    init = await scope.run("sh", "-c", "sleep 1000 & wait")
    await kill_daemon(rig)
    args = ("-id", "c1", "-bundle", str(scope.bundle), "delete")
    done = await trio.to_thread.run_sync(lambda: rig.run_shim(scope.bundle, *args))
    assert done.returncode == 0, done.stderr
    await wait_gone([init])
    await scope.wait_gone()


async def test_a_path_that_names_no_scope_is_refused_in_runcs_words(rig: Rig) -> None:
    bundle = rig.bundle("c1", "true")
    task = await rig.start(bundle)
    with pytest.raises(GRPCError, match="slice:prefix:name"):
        await rig.run(task, bundle, options=rig.options(systemd_cgroup=True))
