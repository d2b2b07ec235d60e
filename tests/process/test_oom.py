"""Memory that runs out: each kill is published once, for the right container, and before the
exit.

In /tasks/oom events and, for CRI-O, in a file called ``oom`` in the bundle.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from shim.api import process_pb2
from shim.api.task_pb2 import (
    DeleteRequest,
    KillRequest,
    StartRequest,
    StateRequest,
    WaitRequest,
)
from shim.cgroup.find import cgroup_of
from shim.cgroup.v1 import CgroupV1
from tests.process.configs import host_pids
from tests.process.rig import Rig, wait_gone
from tests.process.steps import run_until_told

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shim.api.task_grpc import TaskStub

pytestmark = pytest.mark.e2e
LIMIT = 24 << 20
# A shell that doubles a string is soon the largest process; the one around it lives on.
EAT = "x=x; while :; do x=$x$x; done"
EAT_AT_EACH_LINE = f"while read go; do sh -c '{EAT}'; done"


def limited(config: dict[str, Any]) -> None:
    config["linux"]["resources"]["memory"] = {"limit": LIMIT}


def sharing_pids(config: dict[str, Any]) -> None:
    limited(config)
    host_pids(config)


class Commanded:
    """A running container that does its worst at each line it is sent."""

    def __init__(self, rig: Rig, id_: str) -> None:
        self.id = id_
        self.bundle = rig.bundle(id_, "sh", "-c", EAT_AT_EACH_LINE, change=limited)
        self._rig = rig
        self._fifo = rig.root / f"{id_}.in"
        os.mkfifo(self._fifo)
        self._end = os.open(self._fifo, os.O_RDWR | os.O_NONBLOCK)
        self.pid = 0

    async def run(self, task: TaskStub) -> None:
        self.pid = (await self._rig.run(task, self.bundle, stdin=str(self._fifo))).pid

    async def run_out_of_memory(self) -> None:
        """Have one more child killed, and wait for the event."""
        before = self.told()
        os.write(self._end, b"go\n")
        with trio.fail_after(30):
            while self.told() == before:
                await trio.sleep(0.01)

    def told(self) -> int:
        return self._rig.sink.names(self.id).count("oom")

    @property
    def file(self) -> Path:
        """What CRI-O looks for."""
        return self.bundle / "oom"

    def close(self) -> None:
        os.close(self._end)


@pytest.fixture
def two(rig: Rig) -> Iterator[tuple[Commanded, Commanded]]:
    pair = Commanded(rig, "c1"), Commanded(rig, "c2")
    yield pair
    for one in pair:
        one.close()


async def status(task: TaskStub, id_: str) -> int:
    return (await task.State(StateRequest(id=id_), timeout=5)).status


async def test_each_kill_of_a_child_is_told_and_none_of_a_sibling(
    rig: Rig, two: tuple[Commanded, Commanded]
) -> None:
    first, second = two
    task = await rig.start(first.bundle)
    for one in two:
        await one.run(task)
    assert not first.file.exists()
    for number in (1, 2, 3):
        await first.run_out_of_memory()
        assert (first.told(), second.told()) == (number, 0)
    assert first.file.exists()
    assert not second.file.exists()
    await second.run_out_of_memory()
    # No kill is published twice: the exits follow all OOM events.
    for one in two:
        assert await status(task, one.id) == process_pb2.RUNNING
        await task.Kill(KillRequest(id=one.id, signal=9), timeout=5)
        assert (await task.Wait(WaitRequest(id=one.id), timeout=10)).exit_status == 137
        await rig.sink.wait_for(f"exit {one.id}")
    assert rig.sink.names("c1") == ["create", "start", "oom", "oom", "oom", "exit c1"]
    assert rig.sink.names("c2") == ["create", "start", "oom", "exit c2"]


async def test_a_kill_as_the_last_thing_in_a_life_is_told_before_the_exit_each_time(
    rig: Rig,
) -> None:
    bundle = rig.bundle("c0", "sh", "-c", EAT, change=limited)
    task = await rig.start(bundle)
    for number in range(8):
        id_ = f"c{number}"
        if number:
            bundle = rig.bundle(id_, "sh", "-c", EAT, change=limited)
        await rig.run(task, bundle)
        assert (await task.Wait(WaitRequest(id=id_), timeout=30)).exit_status == 137
        assert (bundle / "oom").exists()
        await rig.sink.wait_for(f"exit {id_}")
        assert rig.sink.names(id_) == ["create", "start", "oom", f"exit {id_}"]


async def test_a_kill_in_an_exec_is_the_containers(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000", change=limited)
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    await task.Exec(rig.exec_request("c1", "e1", "sh", "-c", EAT), timeout=5)
    await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=10)
    waited = await task.Wait(WaitRequest(id="c1", exec_id="e1"), timeout=30)
    assert waited.exit_status == 137
    await rig.sink.wait_for("oom")
    assert await status(task, "c1") == process_pb2.RUNNING


def _below(pid: int, limit: int | None) -> Path:
    """Make a group below the one of ``pid``, as a container with writable cgroups may."""
    cgroup = cgroup_of(pid)
    if not isinstance(cgroup, CgroupV1):
        pytest.skip("groups below are made by the rules of cgroup v1 here")
    below = Path(cgroup.directories["memory"]) / "below"
    below.mkdir()
    if limit is not None:
        (below / "memory.limit_in_bytes").write_text(str(limit))
    (below / "cgroup.procs").write_text(str(pid))
    return below


async def test_a_kill_in_a_group_below_counts_as_the_containers(
    rig: Rig, two: tuple[Commanded, Commanded]
) -> None:
    one, _ = two
    task = await rig.start(one.bundle)
    await one.run(task)
    _below(one.pid, None)
    await one.run_out_of_memory()
    await one.run_out_of_memory()
    assert await status(task, "c1") == process_pb2.RUNNING


async def test_a_kill_by_a_limit_that_a_container_set_itself_is_told_before_its_exit(
    rig: Rig,
) -> None:
    # cgroup v1 does not notify the groups above: it is found when it matters.
    bundle = rig.bundle("c1", "sh", "-c", f"read go; {EAT}", change=limited)
    fifo = rig.root / "in"
    os.mkfifo(fifo)
    task = await rig.start(bundle)
    created = await rig.run(task, bundle, stdin=str(fifo))
    _below(created.pid, LIMIT // 2)
    fifo.write_text("go\n")
    assert (await task.Wait(WaitRequest(id="c1"), timeout=30)).exit_status == 137
    await rig.sink.wait_for("exit c1")
    assert rig.sink.names() == ["create", "start", "oom", "exit c1"]


async def test_in_the_hosts_pid_namespace_the_rest_is_killed_and_told_in_order(rig: Rig) -> None:
    script = f"sleep 1000 & sleep 1000 & read go; {EAT}"
    bundle = rig.bundle("c1", "sh", "-c", script, change=sharing_pids)
    task, go, pids = await run_until_told(rig, bundle, 4)
    go()
    assert (await task.Wait(WaitRequest(id="c1"), timeout=30)).exit_status == 137
    await wait_gone(pids)
    await task.Delete(DeleteRequest(id="c1"), timeout=10)
    await rig.sink.wait_for("delete")
    names = rig.sink.names()
    assert names[-2:] == ["exit c1", "delete"]
    assert names.index("exit e1") < names.index("exit c1")
    assert names.count("oom") == 1


async def test_an_ordinary_end_leaves_no_file_and_tells_no_kill(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sh", "-c", "kill -9 $$", change=sharing_pids)
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    assert (await task.Wait(WaitRequest(id="c1"), timeout=10)).exit_status == 137
    await rig.sink.wait_for("exit c1")
    assert "oom" not in rig.sink.names()
    assert not (bundle / "oom").exists()
