"""A process of a move is stopped or killed at the worst moment: one replacement serves."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from grpclib.exceptions import GRPCError

from shim.api.task_pb2 import StateRequest
from shim.version import VERSION
from tests.e2e.waiting import PATIENCE
from tests.process.builds import CURRENT, NEXT
from tests.process.servers import state_of
from tests.process.survival import daemon_of, run_counting
from tests.process.test_upgrade import move, only_left, upgrade, version_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.process.builds import Build
    from tests.process.rig import Rig
    from tests.process.servers import Server
    from tests.process.survival import Start, Survivor

pytestmark = pytest.mark.cold  # the fork servers are the test's own

STOP = "os.kill(os.getpid(), 19)\n"
KEEP = '            if verb == "keep"'
GIVE = "                    self._give(kept, to)\n"


def stop_at_give(build: Build, *, after: bool) -> None:
    """Have the fork server of ``build`` stop before or after it sends fds to another one."""
    stop = f"                    {STOP}"
    changed = GIVE + stop if after else stop + GIVE
    build.edit("shim/start/keeper.py", lambda text: text.replace(GIVE, changed))


def stop_at_keep(build: Build) -> None:
    """Have the fork server of ``build`` stop before it answers a daemon that moves there."""
    stop = f"{KEEP}:\n                {STOP}"
    build.edit("shim/start/server.py", lambda text: text.replace(KEEP, stop + KEEP))


@contextmanager
def continued(pid: int) -> Iterator[None]:
    """Continue the process ``pid`` after the block."""
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def wait_stopped(pid: int) -> None:
    with trio.fail_after(20 * PATIENCE):
        while state_of(pid) != "T":
            await trio.sleep(0.005)


def end_server(path: str, pid: int) -> None:
    """Kill the fork server; no daemon starts another one for a minute."""
    Path(path).with_name(f".{Path(path).name}.again").write_text("a test")
    os.kill(pid, signal.SIGKILL)


async def move_in_vain(shim: Survivor, path: str) -> None:
    """Have the daemon begin a move during which its fork server is killed."""
    with pytest.raises(GRPCError, match="its fork server has ended"):
        await move(shim, path)


async def test_a_daemon_killed_before_the_next_server_answers_is_replaced_without_it(
    rig: Rig, survivors: Start, following: Build, server: Server
) -> None:
    shim, pid = await run_counting(rig, survivors)
    stop_at_keep(following)
    path = await following.server()
    next_server = server.ask(b"status", Path(path))["pid"]
    before = await shim.replace()  # it has the turn
    with continued(next_server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(move, shim, path)
            await wait_stopped(next_server)
            os.kill(before, signal.SIGKILL)
        rig.track(after := await daemon_of(shim.task))
        assert (await shim.task.State(StateRequest(id="c1"), timeout=20)).pid == pid
    await only_left(rig, pid, after)
    assert await daemon_of(shim.task) == after


async def test_a_daemon_goes_on_at_once_if_its_server_is_killed_during_the_move(
    rig: Rig, survivors: Start, following: Build, server: Server
) -> None:
    stop_at_give(following, after=False)
    shim, pid = await run_counting(rig, survivors)
    await upgrade(following)
    rig.track(before := await daemon_of(shim.task))
    old, new = [await build.server() for build in (following, CURRENT)]
    old_server = server.ask(b"status", Path(old))["pid"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(move_in_vain, shim, new)
        await wait_stopped(old_server)
        end_server(old, old_server)
    assert await daemon_of(shim.task) == before
    assert (await shim.task.State(StateRequest(id="c1"), timeout=20)).pid == pid
    await only_left(rig, pid, before)


async def test_a_daemon_goes_on_at_once_if_its_server_is_killed_before_the_next_one_answers(
    rig: Rig, survivors: Start, following: Build, server: Server
) -> None:
    stop_at_keep(following)
    shim, pid = await run_counting(rig, survivors)
    old, new = [await build.server() for build in (CURRENT, following)]
    old_server, new_server = [server.ask(b"status", Path(path))["pid"] for path in (old, new)]
    before = await daemon_of(shim.task)
    with continued(new_server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(move_in_vain, shim, new)
            await wait_stopped(new_server)
            end_server(old, old_server)
        assert await daemon_of(shim.task) == before
    await only_left(rig, pid, before)


@pytest.mark.parametrize("stopped", ["old", "new"])
async def test_a_daemon_answers_while_a_fork_server_is_stopped_and_then_moves(
    rig: Rig, survivors: Start, following: Build, server: Server, stopped: str
) -> None:
    shim, pid = await run_counting(rig, survivors)
    if stopped == "new":
        stop_at_keep(following)
    old, new = [await build.server() for build in (CURRENT, following)]
    stops = server.ask(b"status", Path(old if stopped == "old" else new))["pid"]
    replies = []

    async def begin() -> None:
        replies.append(await move(shim, new))

    with continued(stops):
        if stopped == "old":
            os.kill(stops, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin)
            await wait_stopped(stops)
            await trio.testing.wait_all_tasks_blocked()
            assert (await shim.task.State(StateRequest(id="c1"), timeout=3)).pid == pid
            assert not replies
            os.kill(stops, signal.SIGCONT)
    assert [reply["version"] for reply in replies] == [NEXT]
    rig.track(after := await daemon_of(shim.task))
    await only_left(rig, pid, after)


async def test_an_old_server_that_was_stopped_does_not_replace_a_daemon_that_has_moved(
    rig: Rig, survivors: Start, following: Build, server: Server
) -> None:
    """Its fds are those of the moment of the move."""
    stop_at_give(following, after=True)
    shim, pid = await run_counting(rig, survivors)
    await upgrade(following)
    old, new = [await build.server() for build in (following, CURRENT)]
    old_server, new_server = [server.ask(b"status", Path(path))["pid"] for path in (old, new)]
    with continued(old_server), continued(new_server):
        assert (await move(shim, new))["version"] == VERSION
        await wait_stopped(old_server)
        await shim.exec("c1", "e1", "sh", "-c", "exit 3")
        moved = await daemon_of(shim.task)
        os.kill(new_server, signal.SIGSTOP)
        os.kill(moved, signal.SIGKILL)
        os.kill(old_server, signal.SIGCONT)
        with trio.fail_after(20 * PATIENCE):
            while server.ask(b"status", Path(old))["daemons"]:
                await trio.sleep(0.01)
    rig.track(after := await daemon_of(shim.task))
    assert await version_of(shim) == VERSION
    assert (await shim.wait("c1", "e1")).exit_status == 3
    assert (await shim.task.State(StateRequest(id="c1"), timeout=20)).pid == pid
    await only_left(rig, pid, after)
