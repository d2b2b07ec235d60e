from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.cgroup.find import (
    cgroup_at,
    cgroup_of,
    locate,
    threads_file,
)
from shim.cgroup.v1 import CgroupV1
from shim.cgroup.v2 import CgroupV2
from shim.errors import NotFoundError
from shim.linux.membership import by_controller, parse
from shim.linux.mountinfo import parse as parse_mountinfo
from tests.cgroup.conftest import eventually

if TYPE_CHECKING:
    from tests.cgroup.conftest import Start

UNIFIED = b"""\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate
"""
HYBRID = b"""\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
90 31 0:32 /docker/x /mnt/with\\040space rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""

# Characters at which str.splitlines or text mode end a line, bytes that are not UTF-8, and the
# kernel's suffix for the path of a removed group.
ODD_NAMES = [
    *(b"\x0b", b"\x0c", b"\x1c", b"\x1d", b"\x1e", "\x85".encode(), "\u2028".encode()),
    *(b"\r", b"\xff", b" (deleted)", b" - cgroup", b"\\134"),
]


def test_a_unified_host_has_one_directory() -> None:
    found = locate({"": "/kubepods/pod1/c1"}, parse_mountinfo(UNIFIED))
    assert found == CgroupV2("/sys/fs/cgroup/kubepods/pod1/c1", "/sys/fs/cgroup")


def test_a_hybrid_host_counts_as_v1() -> None:
    text = b"4:memory:/c1\n2:cpu,cpuacct:/c1\n1:name=systemd:/c1\n0::/c1\n"
    found = locate(by_controller(parse(text)), parse_mountinfo(HYBRID))
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


def test_a_group_out_of_reach_is_none() -> None:
    assert locate({"": "/../sibling"}, parse_mountinfo(UNIFIED)) is None


def test_a_mount_of_a_part_shows_the_rest_of_the_path() -> None:
    inside = b"35 31 0:32 /docker/x /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    found = locate({"memory": "/docker/x/c1"}, parse_mountinfo(inside))
    assert found == CgroupV1({"memory": "/sys/fs/cgroup/memory/c1"})
    assert locate({"memory": "/docker/x"}, parse_mountinfo(inside)) is None


@given(st.binary(), st.binary())
def test_no_content_can_break_the_search(membership: bytes, mounts: bytes) -> None:
    locate(by_controller(parse(membership)), parse_mountinfo(mounts + UNIFIED))
    locate(by_controller(parse(membership)), parse_mountinfo(mounts))


def test_the_group_of_a_process_is_found(group: CgroupV1, start: Start) -> None:
    child = start("")
    group.add(child.pid)
    found = cgroup_of(child.pid)
    assert isinstance(found, CgroupV1)
    assert found.directories.items() >= group.directories.items()
    assert found.pids() == [child.pid]
    child.communicate()


def _removed(directory: bytes) -> bool:
    """Remove a group, which takes until its last process is reaped."""
    with suppress(OSError):
        os.rmdir(directory)  # noqa: PTH106 - bytes
    return not os.path.exists(directory)  # noqa: PTH110 - bytes


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_a_group_with_an_odd_name_is_not_taken_for_its_neighbour(
    group: CgroupV1, start: Start, name: bytes
) -> None:
    top = os.fsencode(group.directories["memory"])
    odd, neighbour = top + b"/a" + name, top + b"/a"
    child, other = start(""), start("")
    try:
        for directory, pid in ((odd, child.pid), (neighbour, other.pid)):
            CgroupV1({"memory": os.fsdecode(directory)}).add(pid)
        found = cgroup_of(child.pid)
        assert isinstance(found, CgroupV1)
        assert os.fsencode(found.directories["memory"]) == odd
        CgroupV1({"memory": found.directories["memory"]}).signal_all(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for one in (child, other):
            one.kill()
            one.communicate()
        for directory in (odd, neighbour):
            eventually(partial(_removed, directory))


def test_a_path_names_a_group_in_every_hierarchy(group: CgroupV1) -> None:
    name = group.directories["memory"].rpartition("/")[2]
    for path in (name, f"/{name}", f"../../{name}"):
        found = cgroup_at(path)
        assert isinstance(found, CgroupV1)
        assert found.directories.items() >= group.directories.items()


def test_a_dead_process_has_no_group(start: Start) -> None:
    child = start("")
    child.communicate()
    with pytest.raises(NotFoundError, match="it has ended"):
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
