"""A failed create removes its own cgroup, and nothing of another container's."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shim.cgroup.files import subtree, subtree_pids
from shim.cgroup.find import cgroup_at, existing_directories
from shim.cgroup.v1 import CgroupV1
from shim.container.failed_create import FailedCreate
from shim.reaper import open_reaper

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="cgroups need root")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """The path of a cgroup that does not exist; removed after the test."""
    path = f"/trio-test-{os.getpid()}-{tmp_path.name}"
    yield path
    for directory in existing_directories(path):
        for group in reversed(list(subtree(directory))):
            with suppress(OSError):
                os.rmdir(group)  # noqa: PTH106 - a plain string
    assert not existing_directories(path)


@pytest.fixture
def child(path: str) -> Iterator[subprocess.Popen[str]]:
    """A child of this process; it writes the pid of its own child, and both are killed."""
    script = "trap 'kill -9 $!; wait; exit' TERM; sleep 60 >/dev/null & echo $!; wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def make(path: str) -> list[str]:
    """Make the cgroup ``path`` with a group below it, in each hierarchy."""
    cgroup = cgroup_at(path)
    found = cgroup.directories.values() if isinstance(cgroup, CgroupV1) else [cgroup.directory]
    directories = list(dict.fromkeys(found))
    for directory in directories:
        Path(directory, "below").mkdir(parents=True)
    return directories


async def remove(failed: FailedCreate) -> None:
    async with open_reaper() as reaper:
        await failed.remove(reaper)


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
