"""A process and all its descendants are found and killed, also while they fork."""

from __future__ import annotations

import os
import secrets
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from shim.linux.tree import children_of, stopped_tree
from tests.e2e.waiting import wait_until

FORKING = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); sh -c 'sleep 1000 & wait' & done; wait"


def marked(mark: str) -> list[int]:
    """Find the processes with ``mark`` in their environment; a zombie has none."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def check_nothing_left(count: int) -> None:
    mark = secrets.token_hex(8)
    environ = {**os.environ, "MARK": mark}
    with subprocess.Popen(["sh", "-c", FORKING], env=environ) as process:
        wait_until("it forks", lambda: len(marked(mark)) >= count, every=0)
        with stopped_tree(process.pid) as tree:
            assert tree.pids[0] == process.pid
            assert len(tree.pids) >= count
            tree.kill()
        process.wait(20)
    wait_until("all have ended", lambda: not marked(mark))


@pytest.mark.parametrize("count", [2, 30])
def test_of_a_tree_that_forks_all_the_time_nothing_is_left(count: int) -> None:
    check_nothing_left(count)


@pytest.mark.slow
def test_a_fork_that_waits_for_a_processor_is_not_missed() -> None:
    with ExitStack() as busy:
        for _ in range(3 * (os.cpu_count() or 1)):
            spinning = busy.enter_context(subprocess.Popen(["sh", "-c", "while :; do :; done"]))
            busy.callback(spinning.kill)
        for _ in range(100):
            check_nothing_left(2)


def test_a_tree_of_a_process_that_has_ended_has_no_descendants() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with stopped_tree(process.pid) as tree:
            assert tree.pids == [process.pid]
            tree.kill()
    assert children_of(process.pid) == []


def test_a_tree_leaves_no_fd_open() -> None:
    before = os.listdir("/proc/self/fd")
    with subprocess.Popen(["sleep", "1000"]) as process, stopped_tree(process.pid) as tree:
        tree.kill()
    assert os.listdir("/proc/self/fd") == before
