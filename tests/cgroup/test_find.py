from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.cgroup.find import (
    cgroup_at,
    cgroup_of,
    locate,
    parse_membership,
    parse_mountinfo,
    threads_file,
)
from shim.cgroup.v1 import CgroupV1
from shim.cgroup.v2 import CgroupV2
from shim.errors import NotFoundError

if TYPE_CHECKING:
    from tests.cgroup.conftest import Start

UNIFIED = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate
"""
HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
90 31 0:32 /docker/x /mnt/with\\040space rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""


def test_a_unified_host_has_one_directory() -> None:
    found = locate({"": "/kubepods/pod1/c1"}, parse_mountinfo(UNIFIED))
    assert found == CgroupV2("/sys/fs/cgroup/kubepods/pod1/c1", "/sys/fs/cgroup")


def test_a_hybrid_host_counts_as_v1() -> None:
    text = "4:memory:/c1\n2:cpu,cpuacct:/c1\n1:name=systemd:/c1\n0::/c1\n"
    found = locate(parse_membership(text), parse_mountinfo(HYBRID))
    assert found == CgroupV1(
        {
            "memory": "/sys/fs/cgroup/memory/c1",
            "cpu": "/sys/fs/cgroup/cpu,cpuacct/c1",
            "cpuacct": "/sys/fs/cgroup/cpu,cpuacct/c1",
            "name=systemd": "/sys/fs/cgroup/systemd/c1",
        }
    )


def test_the_root_of_a_hierarchy_is_nobodys_own_group() -> None:
    mixed = locate({"memory": "/c1", "cpu": "/"}, parse_mountinfo(HYBRID))
    assert mixed == CgroupV1({"memory": "/sys/fs/cgroup/memory/c1"})
    assert locate({"memory": "/", "cpu": "/"}, parse_mountinfo(HYBRID)) is None
    assert locate({"": "/"}, parse_mountinfo(UNIFIED)) is None


def test_a_thread_stays_where_it_is_through_a_file_of_any_hierarchy() -> None:
    hybrid, unified = parse_mountinfo(HYBRID), parse_mountinfo(UNIFIED)
    mixed = {"freezer": "/c1", "": "/c1", "cpu": "/c1"}
    assert threads_file(mixed, hybrid) == "/sys/fs/cgroup/cpu,cpuacct/c1/tasks"
    assert threads_file({"cpu": "/"}, hybrid) == "/sys/fs/cgroup/cpu,cpuacct/tasks"
    assert threads_file({"": "/a/b"}, unified) == "/sys/fs/cgroup/a/b/cgroup.threads"
    assert threads_file({"": "/"}, unified) == "/sys/fs/cgroup/cgroup.threads"
    assert threads_file({"": "/../b"}, unified) is None
    assert threads_file({"cpu": "/c1"}, []) is None


def test_a_group_that_is_removed_or_out_of_reach_is_none() -> None:
    assert locate({"": "/gone (deleted)"}, parse_mountinfo(UNIFIED)) is None
    assert locate({"": "/../sibling"}, parse_mountinfo(UNIFIED)) is None


def test_a_mount_of_a_part_shows_the_rest_of_the_path() -> None:
    inside = "35 31 0:32 /docker/x /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    found = locate({"memory": "/docker/x/c1"}, parse_mountinfo(inside))
    assert found == CgroupV1({"memory": "/sys/fs/cgroup/memory/c1"})
    assert locate({"memory": "/docker/x"}, parse_mountinfo(inside)) is None


def test_mountinfo_escapes_are_undone() -> None:
    assert parse_mountinfo(HYBRID)[3].point == "/mnt/with space"


@given(st.text(), st.text())
def test_no_content_can_break_the_search(membership: str, mounts: str) -> None:
    locate(parse_membership(membership), parse_mountinfo(mounts + UNIFIED))
    locate(parse_membership(membership), parse_mountinfo(mounts))


def test_the_group_of_a_process_is_found(group: CgroupV1, start: Start) -> None:
    child = start("")
    group.add(child.pid)
    found = cgroup_of(child.pid)
    assert isinstance(found, CgroupV1)
    assert found.directories.items() >= group.directories.items()
    assert found.pids() == [child.pid]
    child.communicate()


def test_a_path_names_a_group_in_every_hierarchy(group: CgroupV1) -> None:
    name = group.directories["memory"].rpartition("/")[2]
    for path in (name, f"/{name}", f"../../{name}"):
        found = cgroup_at(path)
        assert isinstance(found, CgroupV1)
        assert found.directories.items() >= group.directories.items()


def test_a_dead_process_has_no_group(start: Start) -> None:
    child = start("")
    child.communicate()
    with pytest.raises(NotFoundError, match="gone"):
        cgroup_of(child.pid)


def test_a_zombie_has_no_group(group: CgroupV1, start: Start) -> None:
    child = start("")
    group.add(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    try:
        found = cgroup_of(child.pid)
    except NotFoundError:
        return
    assert found.pids() == []


def test_groups_survive_json() -> None:
    group = CgroupV1({"memory": "/a"})
    assert CgroupV1(**json.loads(json.dumps(asdict(group)))) == group
    unified = CgroupV2("/sys/fs/cgroup/a")
    assert CgroupV2(**json.loads(json.dumps(asdict(unified)))) == unified
