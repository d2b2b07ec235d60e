from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from shim.cgroup.oom import open_oom_watch
from shim.cgroup.v1 import CgroupV1
from shim.cgroup.v2 import CgroupV2
from shim.linux import libc
from tests.cgroup.conftest import say_go, wait_removed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shim.cgroup.oom import OomWatch
    from tests.cgroup.conftest import Start

# Python allocates more than the limit; the shell around it continues.
EATER = f"{sys.executable} -S -c 'b = bytearray(200 << 20)'"
LIMIT = 40 << 20


async def _next_kill(watch: OomWatch) -> None:
    with trio.fail_after(20):
        await watch.wait_kill()


def _limit(group: CgroupV1) -> None:
    Path(group.directories["memory"]).mkdir(exist_ok=True)
    Path(group.directories["memory"], "memory.limit_in_bytes").write_text(str(LIMIT))


async def test_each_kill_is_told_and_counted_once(group: CgroupV1, start: Start) -> None:
    child = start(f"{EATER}; read again; {EATER}; read end")
    group.add(child.pid)
    _limit(group)
    async with open_oom_watch(group) as watch:
        assert watch.count() == 0
        say_go(child)
        await _next_kill(watch)
        assert (watch.count(), watch.reported) == (1, 1)
        say_go(child)
        await _next_kill(watch)
        assert (watch.count(), watch.reported) == (2, 2)


async def test_kills_before_the_watch_do_not_count(group: CgroupV1, start: Start) -> None:
    child = start(f"{EATER}; echo killed; read again; {EATER}; read end")
    group.add(child.pid)
    _limit(group)
    say_go(child)
    assert child.stdout is not None
    assert child.stdout.readline() == b"killed\n"
    async with open_oom_watch(group) as watch:
        say_go(child)
        await _next_kill(watch)
        assert watch.count() == 1


async def test_a_kill_in_a_group_below_counts(group: CgroupV1, start: Start) -> None:
    _limit(group)
    async with open_oom_watch(group) as watch:
        below = Path(group.directories["memory"], "below")
        below.mkdir()
        child = start(f"{EATER}; read end")
        (below / "cgroup.procs").write_text(str(child.pid))
        say_go(child)
        await _next_kill(watch)
        assert watch.count() == 1


async def test_the_count_of_the_last_kill_is_there_once_the_process_is_dead(
    group: CgroupV1, start: Start
) -> None:
    # No task waited: the count is read from the kernel, not from notifications.
    child = start(f"exec {EATER}")
    group.add(child.pid)
    _limit(group)
    async with open_oom_watch(group) as watch:
        say_go(child)
        assert child.wait(20) == -signal.SIGKILL
        assert watch.count() == 1


async def test_removing_the_group_is_not_a_kill(group: CgroupV1) -> None:
    Path(group.directories["memory"]).mkdir()
    async with open_oom_watch(group) as watch:
        with trio.move_on_after(1.5) as waiting:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch.wait_kill)
                await trio.testing.wait_all_tasks_blocked()
                wait_removed(group)
        assert waiting.cancelled_caught
        assert watch.count() == 0


async def test_the_last_known_count_outlives_the_group(group: CgroupV1, start: Start) -> None:
    child = start(f"exec {EATER}")
    group.add(child.pid)
    _limit(group)
    async with open_oom_watch(group) as watch:
        say_go(child)
        child.wait(20)
        assert watch.count() == 1
        wait_removed(group)
        assert watch.count() == 1


async def test_a_group_made_again_starts_its_counter_again(tmp_path: Path) -> None:
    events = _events(tmp_path, 5)
    async with open_oom_watch(CgroupV2(str(tmp_path))) as watch:
        events.write_text("oom_kill 2\n")
        assert watch.count() == 2


@pytest.mark.parametrize("gone", [CgroupV1({}), CgroupV1({"memory": "/none"}), CgroupV2("/none")])
async def test_without_a_memory_controller_nothing_is_told(
    gone: CgroupV1 | CgroupV2, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_oom_watch(gone) as watch:
        with trio.move_on_after(1000) as waiting:
            await watch.wait_kill()
        assert waiting.cancelled_caught
        assert watch.count() == 0


def _events(directory: Path, kills: int) -> Path:
    # memory.events is an ordinary file to inotify.
    path = directory / "memory.events"
    path.write_text(f"low 0\nhigh 0\nmax 9\noom 9\noom_kill {kills}\n")
    return path


async def test_v2_tells_growth_of_oom_kill_only(tmp_path: Path) -> None:
    events = _events(tmp_path, 3)
    async with open_oom_watch(CgroupV2(str(tmp_path))) as watch, trio.open_nursery() as nursery:
        nursery.start_soon(_next_kill, watch)
        await trio.testing.wait_all_tasks_blocked(0.01)
        with events.open("a") as more:
            more.write("high 77\n")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert nursery.child_tasks
        with events.open("a") as more:
            more.write("oom_kill 5\n")
        while nursery.child_tasks:
            await trio.lowlevel.checkpoint()
        assert watch.count() == 2


async def test_a_kill_between_two_waits_is_told_at_once(tmp_path: Path) -> None:
    async with open_oom_watch(CgroupV2(str(tmp_path))) as watch:
        assert watch.count() == 0
    _events(tmp_path, 0)
    async with open_oom_watch(CgroupV2(str(tmp_path))) as watch:
        _events(tmp_path, 1)
        await _next_kill(watch)
        _events(tmp_path, 2)
        await _next_kill(watch)


@pytest.fixture
def no_inotify_left() -> Iterator[Callable[[], None]]:
    """Use up the inotify instances of user 65534, with which the test continues until they are
    freed.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root")
    taken: list[int] = []
    os.seteuid(65534)
    with suppress(OSError):
        while True:
            taken.append(libc.inotify_init())

    def free() -> None:
        os.seteuid(0)
        while taken:
            os.close(taken.pop())

    yield free
    free()


async def test_a_host_without_inotify_left_is_looked_at_now_and_then(
    no_inotify_left: Callable[[], None], autojump_clock: trio.testing.MockClock
) -> None:
    with TemporaryDirectory() as directory:
        events = _events(Path(directory), 0)
        async with open_oom_watch(CgroupV2(directory)) as watch, trio.open_nursery() as nursery:
            no_inotify_left()
            nursery.start_soon(_next_kill, watch)
            await trio.testing.wait_all_tasks_blocked()
            events.write_text("oom_kill 1\n")
            before = trio.current_time()
        assert watch.reported == 1
        assert trio.current_time() > before


async def test_a_watch_leaves_no_fd(group: CgroupV1, tmp_path: Path) -> None:
    Path(group.directories["memory"]).mkdir()
    _events(tmp_path, 0)
    before = os.listdir("/proc/self/fd")
    for cgroup in (group, CgroupV2(str(tmp_path))):
        async with open_oom_watch(cgroup):
            pass
    assert os.listdir("/proc/self/fd") == before
