"""What test_v2 runs in a mount namespace where /sys/fs/cgroup is version 2.

Asserts, and ends with status 0.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import trio

from shim.api.cgroups_v2_pb2 import Metrics
from shim.cgroup.find import cgroup_at, cgroup_of
from shim.cgroup.oom import open_oom_watch
from shim.cgroup.v2 import CgroupV2, enable_controllers
from shim.errors import NotFoundError, UnsupportedError
from tests.cgroup.conftest import eventually, remove_tree


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "100"])


def check_processes(group: CgroupV2) -> None:
    first, second = sleeper(), sleeper()
    group.add(first.pid)
    assert cgroup_of(first.pid) == group
    below = Path(group.directory, "below")
    below.mkdir()
    (below / "cgroup.procs").write_text(str(second.pid))
    assert sorted(group.pids()) == sorted([first.pid, second.pid])
    group.signal_all(signal.SIGTERM)
    assert first.wait(10) == second.wait(10) == -signal.SIGTERM


def check_another_pid_namespace(group: CgroupV2) -> None:
    # Seen from there, our child has no pid: the kernel writes 0.
    child = sleeper()
    group.add(child.pid)
    code = f"from shim.cgroup.v2 import CgroupV2; print(CgroupV2({group.directory!r}).pids())"
    argv = ["unshare", "--pid", "--fork", sys.executable, "-c", code]
    assert subprocess.run(argv, capture_output=True, check=True).stdout == b"[]\n"
    child.kill()
    child.wait(10)


def check_a_zombie_of_a_removed_group(group: CgroupV2) -> None:
    # A zombie in a removed group, beside a group with the name in the zombie's path.
    child, other = sleeper(), sleeper()
    lost = CgroupV2(f"{group.directory}/lost", group.mount)
    neighbour = CgroupV2(f"{group.directory}/lost (deleted)", group.mount)
    lost.add(child.pid)
    neighbour.add(other.pid)
    assert cgroup_of(other.pid) == neighbour
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    Path(lost.directory).rmdir()
    with suppress(NotFoundError):
        raise AssertionError(cgroup_of(child.pid))
    child.wait(10)
    other.kill()
    other.wait(10)
    Path(neighbour.directory).rmdir()


def check_kill(group: CgroupV2) -> None:
    child = sleeper()
    group.add(child.pid)
    group.signal_all(signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL


def check_own_group_is_safe(group: CgroupV2) -> None:
    child = os.fork()
    if child == 0:
        group.add(os.getpid())
        try:
            group.signal_all(signal.SIGKILL)
        except UnsupportedError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def check_metrics(group: CgroupV2) -> None:
    enable_controllers(group)
    offered = Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    enabled = Path(group.directory, "cgroup.controllers").read_text().split()
    assert set(enabled) == set(offered), (enabled, offered)
    packed = group.metrics()
    assert packed.type_url == "io.containerd.cgroups.v2.Metrics"
    metrics = Metrics.FromString(packed.value)
    assert metrics.HasField("cpu")
    assert metrics.cpu.usage_usec > 0
    for controller in ("memory", "pids"):
        assert metrics.HasField(controller) == (controller in offered)
    if "hugetlb" in offered:
        assert metrics.hugetlb
        for huge in metrics.hugetlb:
            limit = Path(group.directory, f"hugetlb.{huge.pagesize}.max").read_text().strip()
            assert str(huge.max) == limit.replace("max", str(2**64 - 1))


def check_oom(group: CgroupV2) -> None:
    Path(group.directory, "memory.max").write_text(str(40 << 20))
    code = "import sys; sys.stdin.readline(); b = bytearray(200 << 20)"
    child = subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE)
    group.add(child.pid)
    trio.run(check_one_kill, group, child)


async def check_one_kill(group: CgroupV2, child: subprocess.Popen[bytes]) -> None:
    async with open_oom_watch(group) as watch:
        child.communicate(b"go\n")
        assert child.returncode == -signal.SIGKILL
        with trio.fail_after(20):
            await watch.wait_kill()
        assert watch.count() == 1


def remove(directory: Path) -> None:
    CgroupV2(str(directory)).signal_all(signal.SIGKILL)

    def removed() -> bool:
        with suppress(OSError):
            remove_tree(str(directory))
        return not directory.exists()

    eventually(removed)


def check_removed(group: CgroupV2) -> None:
    remove(Path(group.directory))
    assert not group.exists()
    assert group.pids() == []
    group.signal_all(signal.SIGKILL)
    try:
        group.metrics()
    except NotFoundError:
        return
    raise AssertionError("metrics of a removed group")


def main() -> None:
    group = cgroup_at(f"/trio-shim-test-{os.getpid()}/c1")
    assert isinstance(group, CgroupV2)
    try:
        check_processes(group)
        check_another_pid_namespace(group)
        check_a_zombie_of_a_removed_group(group)
        check_kill(group)
        check_own_group_is_safe(group)
        check_metrics(group)
        if Path(group.directory, "memory.max").exists():
            check_oom(group)
        check_removed(group)
    finally:
        remove(Path(group.directory).parent)
    print("ok")


if __name__ == "__main__":
    main()
