"""The cgroup that is certainly the container's, so that its processes may be killed."""

from __future__ import annotations

import json
import os
import select
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shim.cgroup.find import existing_directories
from shim.cgroup.v1 import CgroupV1
from shim.container.bundle import Bundle
from shim.container.cleanup_records import CleanupRecord
from shim.container.orphaned import (
    cgroup_names,
    cleanup_record_of,
    container_part,
    kill_orphaned,
    own_part,
)
from shim.errors import NotFoundError
from shim.runc.command import Runtime
from tests.container.conftest import join, make

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="cgroups need root")


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("", ["c1", "runc-c1.scope", "crun-c1.scope"]),
        ("/default/c1", ["default/c1"]),
        ("kubepods//burst/../c1/", ["kubepods/c1"]),
        ("system.slice:docker:abc", ["docker-abc.scope"]),
        ("system.slice::abc", ["abc.scope"]),
        ("user.slice:x:own.slice", ["own.slice"]),
    ],
)
def test_a_cgroup_is_called_as_the_configuration_says(path: str, names: list[str]) -> None:
    assert cgroup_names(path, "c1") == names


def test_a_cgroup_is_called_as_the_runtime_reads_it(tmp_path: Path) -> None:
    text = b'{"x": %s, "linux": {"cgroupsPath": "/x/caf\xe9"}}' % (b"[" * 5000 + b"]" * 5000)
    (tmp_path / "config.json").write_bytes(text)
    assert cleanup_record_of(Bundle(tmp_path), "c1", "default").cgroups == ("x/caf\ufffd",)


@pytest.mark.parametrize(
    ("directory", "part"),
    [
        ("/sys/fs/cgroup/default/c1", "/sys/fs/cgroup/default/c1"),
        ("/sys/fs/cgroup/default/c1/init.scope", "/sys/fs/cgroup/default/c1"),
        ("/sys/fs/cgroup/default/c10", ""),
        ("/sys/fs/cgroup/xdefault/c1", ""),
        ("/sys/fs/cgroup/default", ""),
        ("/sys/fs/cgroup/default/default/c1", "/sys/fs/cgroup/default/default/c1"),
    ],
)
def test_a_process_below_it_is_in_it_and_one_beside_it_is_not(directory: str, part: str) -> None:
    assert own_part(directory, ["default/c1"]) == part


@pytest.fixture
def two() -> Iterator[tuple[int, int]]:
    """Two processes, as the init of a container and another one in it."""
    processes = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    try:
        yield processes[0].pid, processes[1].pid
    finally:
        for process in processes:
            process.kill()
            process.wait()


def record(name: str, pid: int, *, own: bool = False) -> CleanupRecord:
    return CleanupRecord("c1", "/b", Runtime("runc", "/run/runc"), pid, (name,), own)


def ended(pid: int) -> bool:
    pidfd = os.pidfd_open(pid)
    try:
        return bool(select.select([pidfd], [], [], 0)[0])
    finally:
        os.close(pidfd)


@needs_root
@pytest.mark.parametrize("own", [True, False])
def test_the_init_is_killed_and_without_its_own_pid_namespace_all_others(
    path: str, two: tuple[int, int], own: bool
) -> None:
    for directory in make(path):
        for pid in two:
            join(directory, pid)
    fds = os.listdir("/proc/self/fd")
    kill_orphaned(
        [
            record("another", two[1], own=own),
            record("none", 0),
            record("none", 1 << 22),
            record("none", 10**30),
            record(path[1:], two[0], own=own),
        ]
    )
    assert ended(two[0])  # it is a zombie when the call returns
    assert len(os.listdir("/proc/self/fd")) == len(fds)
    if own:
        assert not ended(two[1])
    else:
        pidfd = os.pidfd_open(two[1])
        assert select.select([pidfd], [], [], 10)[0]
        os.close(pidfd)


@needs_root
def test_the_part_of_a_cgroup_that_is_the_containers_is_found_in_each_hierarchy(path: str) -> None:
    directories = {str(number): one for number, one in enumerate(make(path))}
    for one in directories.values():
        assert one in existing_directories(path)
    below = CgroupV1({name: f"{one}/below" for name, one in directories.items()})
    part = container_part(below, ["x", path[1:]])
    assert isinstance(part, CgroupV1)
    assert part.directories == directories
    with pytest.raises(NotFoundError):
        container_part(below, ["x"])


@needs_root
def test_a_hierarchys_root_is_no_containers_whose_name_is_the_same(path: str) -> None:
    """All processes of the host are in it."""
    mounted = next(one for one in make(path) if os.path.ismount(Path(one).parent))
    root = str(Path(mounted).parent)
    assert container_part(CgroupV1({"a": mounted}), [path[1:]])
    with pytest.raises(NotFoundError):
        container_part(CgroupV1({"a": mounted}), [Path(root).name])


@pytest.mark.parametrize(
    ("namespaces", "own"), [([{"type": "pid"}], True), ([{"type": "pid", "path": "/x"}], False)]
)
def test_a_record_made_from_the_bundle_tells_whether_the_pid_namespace_is_its_own(
    tmp_path: Path, namespaces: list[dict[str, str]], own: bool
) -> None:
    config = {"linux": {"namespaces": namespaces, "cgroupsPath": "/x/c1"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "init.pid").write_text("4711")
    found = cleanup_record_of(Bundle(tmp_path), "c1", "default")
    assert (found.pid, found.cgroups, found.own_pid_namespace) == (4711, ("x/c1",), own)
    (tmp_path / "config.json").unlink()
    found = cleanup_record_of(Bundle(tmp_path), "c1", "default")
    assert (found.pid, found.cgroups, found.own_pid_namespace) == (4711, (), False)
