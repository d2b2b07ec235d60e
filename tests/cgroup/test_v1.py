from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shim.api.cgroups_v1_pb2 import Metrics
from shim.cgroup.v1 import CgroupV1
from shim.cgroup.v2 import CgroupV2
from shim.errors import NotFoundError, UnsupportedError
from tests.cgroup.conftest import eventually, say_go, wait_removed

if TYPE_CHECKING:
    from tests.cgroup.conftest import Start


def _metrics(group: CgroupV1) -> Metrics:
    packed = group.metrics()
    assert packed.type_url == "io.containerd.cgroups.v1.Metrics"
    return Metrics.FromString(packed.value)


def _number(group: CgroupV1, controller: str, name: str) -> int:
    return int(Path(group.directories[controller], name).read_text())


def test_a_process_joins_every_hierarchy(group: CgroupV1, start: Start) -> None:
    child = start("")
    assert not group.exists()
    group.add(child.pid)
    assert group.exists()
    for directory in group.directories.values():
        assert Path(directory, "cgroup.procs").read_text() == f"{child.pid}\n"


def test_a_dead_process_cannot_join(group: CgroupV1, start: Start) -> None:
    child = start("")
    child.communicate()
    with pytest.raises(NotFoundError, match=f"cannot move process {child.pid} to "):
        group.add(child.pid)


def test_metrics_agree_with_the_kernels_files(group: CgroupV1, start: Start) -> None:
    # Joins first and works then, so that all of it is accounted for.
    child = start("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; read end")
    group.add(child.pid)
    say_go(child)
    assert child.stdout is not None
    assert child.stdout.readline() == b"done\n"
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)

    metrics = _metrics(group)
    stat = dict(
        line.split()
        for line in Path(group.directories["memory"], "memory.stat").read_text().splitlines()
    )
    assert metrics.pids.current == 1
    assert metrics.cpu.usage.total == _number(group, "cpuacct", "cpuacct.usage") > 0
    assert sum(metrics.cpu.usage.per_cpu) == metrics.cpu.usage.total
    memory = metrics.memory
    assert memory.usage.max == _number(group, "memory", "memory.max_usage_in_bytes") > 0
    assert memory.usage.limit == _number(group, "memory", "memory.limit_in_bytes")
    assert memory.kernel.max == _number(group, "memory", "memory.kmem.max_usage_in_bytes")
    assert memory.pg_fault == int(stat["pgfault"])
    assert memory.hierarchical_memory_limit == int(stat["hierarchical_memory_limit"])
    assert metrics.memory_oom_control.oom_kill == 0
    assert metrics.HasField("blkio")


def test_metrics_of_a_removed_group_are_not_found(group: CgroupV1, start: Start) -> None:
    group.add(start("").pid)
    group.signal_all(signal.SIGKILL)
    wait_removed(group)
    assert group.pids() == []
    with pytest.raises(NotFoundError, match="cgroup not found"):
        group.metrics()


def test_a_group_that_lost_one_hierarchy_still_has_metrics(group: CgroupV1) -> None:
    for directory in group.directories.values():
        Path(directory).mkdir()
    Path(group.directories["memory"]).rmdir()
    metrics = _metrics(group)
    assert not metrics.HasField("memory")
    assert metrics.HasField("pids")


def test_pids_include_the_groups_below_each_once(group: CgroupV1, start: Start) -> None:
    first, second, third = (start("").pid for _ in range(3))
    group.add(first)
    for pid, below in ((second, "a"), (third, "a/b")):
        directory = Path(group.directories["devices"], below)
        directory.mkdir()
        (directory / "cgroup.procs").write_text(str(pid))
    assert sorted(group.pids()) == sorted([first, second, third])


def test_signal_all_reaches_the_groups_below_and_the_newborn(
    group: CgroupV1, start: Start
) -> None:
    child = start("while :; do sh -c 'sleep 100 & sleep 100 & wait' & sleep 0.01; done")
    group.add(child.pid)
    below = Path(group.directories["devices"], "below")
    below.mkdir()
    other = start("")
    (below / "cgroup.procs").write_text(str(other.pid))
    say_go(child)
    eventually(lambda: len(group.pids()) >= 10)
    group.signal_all(signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL
    assert other.wait(10) == -signal.SIGKILL
    wait_removed(group)


def test_signal_all_passes_other_signals_on(group: CgroupV1, start: Start) -> None:
    child = start("")
    group.add(child.pid)
    group.signal_all(signal.SIGTERM)
    assert child.wait(10) == -signal.SIGTERM


def test_signal_all_never_signals_the_shims_own_group(group: CgroupV1, start: Start) -> None:
    # In another process: it moves itself.
    child = start("")
    group.add(child.pid)
    code = (
        "import os; from shim.cgroup.v1 import CgroupV1\n"
        f"group = CgroupV1({group.directories!r})\n"
        "group.add(os.getpid()); group.signal_all(9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert UnsupportedError.__name__ in done.stderr
    assert child.poll() is None


@pytest.mark.timed
def test_the_processes_of_a_group_take_little_time_to_list(group: CgroupV1, start: Start) -> None:
    group.add(start("").pid)
    begin = time.perf_counter()
    for _ in range(100):
        group.pids()
    assert (time.perf_counter() - begin) / 100 < 0.002


@pytest.mark.parametrize(
    ("group", "above", "room"),
    [
        ("max", "max", True),
        ("10", "max", False),
        ("12", "max", False),
        ("13", "max", True),
        ("max", "12", False),
        ("max", "13", True),
        ("", "13", True),
        ("", "12", False),
        ("nonsense", "max", False),
        ("9", "max", False),
    ],
)
def test_there_is_room_for_processes_where_no_limit_on_the_way_up_is_near(
    tmp_path: Path, group: str, above: str, room: bool
) -> None:
    """Directories stand for the kernel's: each has 10 processes, and 3 more are asked for."""
    below = tmp_path / "a/b"
    below.mkdir(parents=True)
    for directory, limit in ((tmp_path / "a", above), (below, group)):
        (directory / "cgroup.procs").write_text("")
        if limit:
            (directory / "pids.max").write_text(f"{limit}\n")
            (directory / "pids.current").write_text("10\n")
    assert CgroupV1({"pids": str(below), "cpu": "/nonexistent"}).has_room(3) is room
    assert CgroupV2(str(below), str(tmp_path)).has_room(3) is room
    assert CgroupV1({"cpu": str(below)}).has_room(1000)
