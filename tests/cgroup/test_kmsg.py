"""OOM kills in the kernel's log, for groups that were removed before they were read."""

from __future__ import annotations

import signal
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shim.cgroup.kmsg import KernelLog, parse_kill
from shim.cgroup.oom import open_oom_watch
from shim.cgroup.v1 import CgroupV1
from tests.cgroup.conftest import say_go, wait_removed

if TYPE_CHECKING:
    from tests.cgroup.conftest import Start

EATER = f"exec {sys.executable} -S -c 'b = bytearray(200 << 20)'"
SUMMARY = (
    "6,1220,98765,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=a.scope,"
    "mems_allowed=0,oom_memcg=/s/a.scope,task_memcg=/s/a.scope/b,task=a,pid=2,uid=0,pid=17,uid=0\n"
)
KILLED = "3,1221,98765,-;{}: Killed process 17 (sh) total-vm:1kB, UID:0 oom_score_adj:0\n"


@pytest.mark.parametrize(
    ("record", "kill"),
    [
        (SUMMARY, (17, "/s/a.scope/b")),  # a task may be called anything
        (SUMMARY.replace("a.scope/b", r"a\x0cb \x5c\xc3\xbc"), (17, "/s/a\x0cb \\ü")),
        (KILLED.format("Memory cgroup out of memory"), (17, "")),
        (KILLED.format("Out of memory"), (17, "")),
        (KILLED.format("Out of memory (oom_kill_allocating_task)"), (17, "")),
        ("6,1,1,-;eth0: link up\n SUBSYSTEM=net\n", (0, "")),
        ("", (0, "")),
    ],
)
def test_lines_of_the_log(record: str, kill: tuple[int, str]) -> None:
    assert parse_kill(record) == kill


@pytest.mark.host  # the kernel logs pids of the host
def test_a_kill_since_the_log_was_opened_is_found(group: CgroupV1, start: Start) -> None:
    # By its pid: among other kills the log may leave the line with the group out.
    child = start(EATER)
    group.add(child.pid)
    directory = Path(group.directories["memory"])
    (directory / "memory.limit_in_bytes").write_text(str(40 << 20))
    with closing(KernelLog()) as kernel:
        say_go(child)
        assert child.wait(20) == -signal.SIGKILL
        wait_removed(group)
        assert kernel.kills("/another", [child.pid]) == 1
        assert kernel.kills("/another", []) == 0
    with closing(KernelLog()) as later:
        assert later.kills("/another", [child.pid]) == 0


@pytest.mark.host  # the kernel logs pids of the host
async def test_a_scope_that_is_gone_before_it_was_read_has_its_kills(
    group: CgroupV1, start: Start
) -> None:
    scope = CgroupV1({name: f"{path}.scope" for name, path in group.directories.items()})
    child = start(EATER)
    scope.add(child.pid)
    Path(scope.directories["memory"], "memory.limit_in_bytes").write_text(str(40 << 20))
    try:
        async with open_oom_watch(scope) as watch:
            say_go(child)
            assert child.wait(20) == -signal.SIGKILL
            wait_removed(scope)
            assert watch.count() == 1
            assert watch.count() == 1
    finally:
        wait_removed(scope)
