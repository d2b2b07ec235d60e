"""Cgroups, mounts and the reaper of these tests."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shim.cgroup.files import subtree
from shim.cgroup.find import cgroup_at, existing_directories
from shim.cgroup.v1 import CgroupV1
from shim.linux.layers import layers_of
from shim.linux.mountinfo import mounts_below
from shim.linux.mounts import Mount, mount_all, unmount_all
from shim.reaper import Reaper, open_reaper

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


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
def work(tmp_path: Path) -> Iterator[Path]:
    """A directory on a tmpfs, which supports mapped owners."""
    mount_all([Mount("tmpfs", "tmpfs", "", ["mode=755", "rprivate"])], str(tmp_path))
    (tmp_path / "rootfs").mkdir()
    try:
        yield tmp_path
        unmount_all(str(tmp_path / "rootfs"))
        assert mounts_below(str(tmp_path)) == [str(tmp_path)]
        assert not Path(layers_of(str(tmp_path / "rootfs"))).exists()
    finally:
        unmount_all(str(tmp_path))


@pytest.fixture
async def reaper() -> AsyncIterator[Reaper]:
    async with open_reaper() as reaper:
        yield reaper


def make(path: str) -> list[str]:
    """Make the cgroup ``path`` with a group below it, in each hierarchy."""
    cgroup = cgroup_at(path)
    found = cgroup.directories.values() if isinstance(cgroup, CgroupV1) else [cgroup.directory]
    directories = list(dict.fromkeys(found))
    for directory in directories:
        Path(directory, "below").mkdir(parents=True)
    return directories


def join(directory: str, pid: int) -> None:
    """Move ``pid`` to a cgroup; a cpuset needs processors and memory nodes before."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        file = Path(directory, name)
        if file.exists() and not file.read_text().strip():
            file.write_text((file.parents[1] / name).read_text())
    Path(directory, "cgroup.procs").write_text(str(pid))
