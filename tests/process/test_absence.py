"""A container that does not exist, and one that cannot be read: managers delete the former.

Source: containerd core/runtime/v2 shim_load.go, cmd/containerd-shim-runc-v2 process/utils.go,
moby daemon/internal/libcontainerd/remote/client.go.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from grpclib.const import Status

from shim.api.task_pb2 import (
    ConnectRequest,
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
from tests.process.test_traps import end, refused, run_exec, running

if TYPE_CHECKING:
    from tests.process.rig import Rig

# The texts that Docker reads as "does not exist", with any status.
ABSENT = ("not found", "no such container", "container does not exist")


async def test_what_is_not_there_is_said_in_words_that_docker_knows(rig: Rig) -> None:
    task, _ = await running(rig)
    await run_exec(rig, task, "e1", "true")
    await task.Wait(WaitRequest(id="c1", exec_id="e1"), timeout=20)
    texts = [await refused(task.Kill(KillRequest(id="c1", exec_id="e1")), Status.NOT_FOUND)]
    await end(task)
    texts.append(await refused(task.Kill(KillRequest(id="c1", signal=9)), Status.NOT_FOUND))
    assert all("process already finished" in text for text in texts)
    await task.Delete(DeleteRequest(id="c1"), timeout=20)
    for id_, exec_id in (("c1", ""), ("c1", "e1"), ("nobody", "")):
        calls = (
            task.Kill(KillRequest(id=id_, exec_id=exec_id)),
            task.Delete(DeleteRequest(id=id_, exec_id=exec_id)),
            task.State(StateRequest(id=id_, exec_id=exec_id)),
            task.Wait(WaitRequest(id=id_, exec_id=exec_id)),
        )
        texts += [await refused(call, Status.NOT_FOUND) for call in calls]
    assert all(any(words in text for words in ABSENT) for text in texts), texts


async def test_what_is_there_is_never_said_to_be_gone(rig: Rig) -> None:
    """Docker removes a container if it reads the error as "does not exist"."""
    task, _ = await running(rig)
    await task.Exec(rig.exec_request("c1", "e1", "true"), timeout=5)
    refusals = {
        Status.FAILED_PRECONDITION: [
            task.Delete(DeleteRequest(id="c1")),
            task.Start(StartRequest(id="c1")),
            task.Kill(KillRequest(id="c1", exec_id="e1")),
        ],
        Status.ALREADY_EXISTS: [
            task.Create(rig.create_request(rig.root / "c1")),
            task.Exec(rig.exec_request("c1", "e1", "true")),
        ],
    }
    texts = [await refused(c, status) for status, calls in refusals.items() for c in calls]
    assert texts[0] == "cannot delete a running process"
    assert not any(words in text for text in texts for words in (*ABSENT, "already finished"))


async def test_pids_names_init_until_the_delete_though_it_has_ended(rig: Rig) -> None:
    """A restarted containerd takes an empty list for a container that was never created."""
    task, pid = await running(rig, "true")
    await task.Wait(WaitRequest(id="c1"), timeout=20)
    pids = [p.pid for p in (await task.Pids(PidsRequest(id="c1"), timeout=5)).processes]
    assert pids == [pid]
    await task.Delete(DeleteRequest(id="c1"), timeout=20)
    await refused(task.Pids(PidsRequest(id="c1")), Status.NOT_FOUND)


def groups_of(pid: int) -> list[Path]:
    cgroup = cgroup_of(pid)
    if isinstance(cgroup, CgroupV1):
        return [Path(directory) for directory in sorted(set(cgroup.directories.values()))]
    return [Path(cgroup.directory)]


async def test_stats_name_the_hosts_cgroup_version_and_then_nothing(rig: Rig) -> None:
    task, pid = await running(rig)
    version = 1 if isinstance(cgroup_of(pid), CgroupV1) else 2
    stats = (await task.Stats(StatsRequest(id="c1"), timeout=5)).stats
    assert stats.type_url == f"io.containerd.cgroups.v{version}.Metrics"
    groups = groups_of(pid)
    await end(task)
    for group in groups:
        group.rmdir()
    await refused(task.Stats(StatsRequest(id="c1")), Status.NOT_FOUND)
    assert (await task.Connect(ConnectRequest(id="c1"), timeout=5)).task_pid == pid
    await task.Delete(DeleteRequest(id="c1"), timeout=20)
