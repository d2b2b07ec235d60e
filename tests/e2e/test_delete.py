"""Delete removes everything, in every state."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.e2e.leftovers import mounts
from tests.e2e.test_lifecycle import alive
from tests.e2e.test_restart import remove_stock_sockets, shim_pids
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from tests.e2e.ctr import Ctr

pytestmark = pytest.mark.e2e
SCENARIO = "Delete"


def stack_mounts(ctr: Ctr, container: str) -> None:
    """Mount over the root of ``container`` twice, and inside."""
    rootfs = ctr.containerd.bundle(container) / "rootfs"
    (rootfs / "mnt").mkdir(exist_ok=True)
    for point in (rootfs / "mnt", rootfs, rootfs):
        subprocess.run(["mount", "-t", "tmpfs", "none", point], timeout=10, check=True)
    assert mounts(str(ctr.containerd.root)).count(str(rootfs)) == 3


def test_mounts_stacked_on_the_root_are_undone(ctr: Ctr) -> None:
    name = ctr.start("sleep", "1000")
    stack_mounts(ctr, name)
    ctr.kill(name)
    ctr.wait_state(name, "STOPPED")
    assert ctr.delete(name) == 137
    assert mounts(str(ctr.containerd.root)) == []


@pytest.mark.mortal
def test_mounts_stacked_on_the_root_are_undone_when_the_shim_is_dead(ctr: Ctr) -> None:
    name = ctr.start("sleep", "1000", flags=("--null-io",))
    pid = ctr.pid(name)
    stack_mounts(ctr, name)
    for shim in shim_pids(ctr):
        os.kill(shim, signal.SIGKILL)
    wait_until("the container is dead", lambda: not alive(pid))
    wait_until("containerd has cleaned up", lambda: ctr.state(name) in {None, "STOPPED"})
    wait_until("it is unmounted", lambda: mounts(str(ctr.containerd.root)) == [])
    ctr("task", "rm", name)
    ctr.ok("c", "rm", name)
    remove_stock_sockets(ctr)


@pytest.mark.parametrize("state", ["RUNNING", "PAUSED", "STOPPED"])
def test_force_takes_a_container_with_its_execs(ctr: Ctr, state: str) -> None:
    name = ctr.start("sh", "-c", "while ! test -e /go; do sleep 0.05; done")
    pid = ctr.pid(name)
    ctr.exec_detached(name, "held", "sleep", "1000")
    if state == "PAUSED":
        ctr.ok("task", "pause", name)
    elif state == "STOPPED":
        ctr.touch(name, "/go")
    ctr.wait_state(name, state)
    if state == "PAUSED":
        # With cgroup v1 a frozen process dies once it is thawed, and ctr waits for it.
        ctr.kill(name)
        ctr("task", "resume", name)
    result = ctr("task", "rm", "-f", name)
    assert ctr.state(name) is None, result
    assert not alive(pid)
    ctr.ok("c", "rm", name)


def test_a_task_deleted_twice_is_not_found_the_second_time(ctr: Ctr) -> None:
    name = ctr.start("true")
    ctr.wait_state(name, "STOPPED")
    ctr.ok("task", "rm", name)
    again = ctr("task", "rm", name)
    assert again.code != 0
    assert "not found" in again.err
    ctr.ok("c", "rm", name)


def test_a_deleted_id_is_free(ctr: Ctr) -> None:
    name = ctr.new_id()
    for code in (1, 2, 3):
        assert ctr.run("--rm", "--", name, "sh", "-c", f"exit {code}").code == code
