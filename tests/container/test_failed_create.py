"""A failed create removes its own cgroup, and nothing of another container's."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shim.cgroup.files import subtree_pids
from shim.cgroup.find import existing_directories
from shim.container.failed_create import FailedCreate
from shim.reaper import open_reaper
from tests.container.conftest import join, make

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="cgroups need root")


@pytest.fixture
def child(path: str) -> Iterator[subprocess.Popen[str]]:
    """A child of this process, which writes the pid of its child; both are killed."""
    script = "trap 'kill -9 $!; wait; exit' TERM; sleep 60 >/dev/null & echo $!; wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


async def remove(failed: FailedCreate) -> None:
    async with open_reaper() as reaper:
        await failed.remove(reaper.kill_orphan)


async def test_a_cgroup_that_the_runtime_made_is_removed(path: str) -> None:
    failed = FailedCreate("c1", path)
    make(path)
    await remove(failed)
    assert not existing_directories(path)


async def test_a_cgroup_that_existed_before_the_create_stays(path: str) -> None:
    directories = make(path)
    assert existing_directories(path) == set(directories)
    await remove(FailedCreate("c1", path))
    assert all(Path(directory, "below").is_dir() for directory in directories)


async def test_a_process_in_a_cgroup_that_existed_before_the_create_lives(
    path: str, child: subprocess.Popen[str]
) -> None:
    """An orphan of another container of the pod is a child of the same daemon."""
    directory = make(path)[0]
    Path(directory, "below/cgroup.procs").write_text(str(child.pid))
    await remove(FailedCreate("c1", path))
    assert child.poll() is None


async def test_no_group_below_is_removed_while_a_process_of_another_container_is_there(
    path: str, child: subprocess.Popen[str]
) -> None:
    failed = FailedCreate("c1", path)
    directory = make(path)[0]
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    Path(directory, "cgroup.procs").write_text(str(grandchild))
    await remove(failed)
    assert subtree_pids(directory) == [grandchild]
    assert Path(directory, "below").is_dir()


async def test_a_create_that_is_killed_leaves_no_cgroup_that_only_its_processes_name(
    path: str, child: subprocess.Popen[str]
) -> None:
    """A path that is not absolute begins at the runtime's cgroup; a dead pid comes before."""
    name = path.removeprefix("/")
    failed = FailedCreate("c1", name)
    directories = make(path)
    assert child.stdout is not None
    child.stdout.readline()
    for directory in directories:
        join(directory, child.pid)
    failed.find([1 << 22, child.pid])  # no process has the first pid
    for pid in {pid for directory in directories for pid in subtree_pids(directory)}:
        os.kill(pid, signal.SIGKILL)
    child.wait()
    await remove(failed)
    assert not existing_directories(path)


@pytest.mark.parametrize("path", ["/trio-test\0x", None, "/" + "x" * 300])
async def test_with_a_path_that_no_cgroup_can_have_nothing_is_removed(path: str | None) -> None:
    before = set(os.listdir("/sys/fs/cgroup"))
    failed = FailedCreate("c1", path)
    failed.find([os.getpid()])
    await remove(failed)
    assert set(os.listdir("/sys/fs/cgroup")) == before
