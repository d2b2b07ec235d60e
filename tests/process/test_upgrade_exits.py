"""The exits of processes whose daemon was killed or replaced, from each of their sources."""

from __future__ import annotations

import itertools
import os
import random
import select
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio

from shim.exit import UNKNOWN_STATUS
from shim.records import read_exit
from shim.version import VERSION
from tests.e2e.waiting import PATIENCE
from tests.process.builds import NEXT, Build
from tests.process.rig import wait_gone
from tests.process.servers import parent_of
from tests.process.steps import wait_trapped
from tests.process.survival import daemon_of, exec_until_term, kill_server, until_term, wait_kept
from tests.process.test_upgrade import move, version_of
from tests.test_reaper import keeps_status

if TYPE_CHECKING:
    from pathlib import Path

    from tests.process.rig import Rig
    from tests.process.servers import Server
    from tests.process.survival import Start, Survivor

pytestmark = pytest.mark.cold  # the fork servers are the test's own


def without_kernel(build: Build) -> Build:
    """Have ``build`` take the kernel for one before Linux 6.15."""
    build.edit(
        "shim/linux/processes.py",
        lambda text: text.replace(
            "    info = bytearray(", "    return None\n    info = bytearray("
        ),
    )
    return build


def without_keeper(build: Build) -> Build:
    """Have the daemons of ``build`` ask no fork server."""
    build.edit(
        "shim/recovery/deposit.py",
        lambda text: text.replace(
            "        if (known := await self._ask(name)",
            "        return None\n        if (known := await self._ask(name)",
        ),
    )
    return build


async def run_ending(rig: Rig, survivors: Start) -> Survivor:
    """Run the container c1, which exits with 7 at SIGTERM."""
    shim = await survivors(bundle := rig.bundle("c1", *until_term(7)))
    await wait_trapped(await shim.run(bundle))
    return shim


async def upgrade(rig: Rig, shim: Survivor, build: Build) -> int:
    """Upgrade the daemon to ``build``; return the pid of the fork server that it had."""
    server = parent_of(await daemon_of(shim.task))
    done = await build.upgrade("--all", "--force")
    assert (done.returncode, done.stderr) == (0, "")
    assert await version_of(shim) == build.version
    rig.track(await daemon_of(shim.task))
    return server


async def end(shim: Survivor, *execs: str) -> list[int]:
    """End the processes one by one, "" is the init process; return their exit statuses."""
    statuses = []
    for exec_id in execs:
        await shim.kill("c1", exec_id, number=signal.SIGTERM)
        statuses.append((await shim.wait("c1", exec_id)).exit_status)
    return statuses


SOURCES = {
    "the kernel": [without_keeper],
    "the keeper": [without_kernel],
    "none": [without_keeper, without_kernel],
}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, following: Build) -> str:
    """Leave ``following`` one source of exits at most; return which."""
    if request.param == "the kernel" and not keeps_status():
        pytest.skip("this machine's kernel keeps no exit status of a reaped process")
    for change in SOURCES[request.param]:
        change(following)
    return str(request.param)


def expect(bundle: Path, source: str, found: int, true: int, exec_id: str = "") -> None:
    """Check the exit status ``found`` and the record of a process that exited with ``true``."""
    assert found == (UNKNOWN_STATUS if source == "none" else true)
    record = read_exit(str(bundle), exec_id)
    assert record is not None
    assert (record.exit_status, bool(record.reason)) == (found, source == "none")


async def test_exits_after_an_upgrade_are_true_from_each_source_or_else_unknown(
    rig: Rig, survivors: Start, following: Build, source: str
) -> None:
    shim = await run_ending(rig, survivors)
    await exec_until_term(shim, "e1", 3)
    await upgrade(rig, shim, following)
    [found] = await end(shim, "e1")
    expect(rig.root / "c1", source, found, 3, "e1")
    [found] = await end(shim, "")
    expect(rig.root / "c1", source, found, 7)


async def test_exits_after_a_death_are_true_from_each_source_or_else_unknown(
    rig: Rig, survivors: Start, following: Build, source: str
) -> None:
    shim = await survivors(bundle := rig.bundle("c1", "sleep", "1000"))
    await shim.run(bundle)
    await upgrade(rig, shim, following)
    await exec_until_term(shim, "e1", 3)
    await shim.replace()
    [found] = await end(shim, "e1")
    expect(bundle, source, found, 3, "e1")


async def test_an_exit_is_true_though_its_daemon_is_killed_before_the_record(
    rig: Rig, survivors: Start, following: Build
) -> None:
    """The process is not reaped before that, so the keeper can still wait for it."""
    once = (  # a fork server runs this code, too, to be warm
        f"    if exit_.exit_status == 33 and not os.path.exists({str(rig.root / 'killed')!r}):\n"
        f"        os.close(os.open({str(rig.root / 'killed')!r}, os.O_CREAT))\n"
        "        os.kill(os.getpid(), 9)\n"
    )
    line = "    # No exec's id begins with a dot.\n"
    without_kernel(following).edit("shim/records.py", lambda text: text.replace(line, once + line))
    shim = await survivors(bundle := rig.bundle("c1", "sleep", "1000"))
    await shim.run(bundle)
    await upgrade(rig, shim, following)
    before = await daemon_of(shim.task)
    await shim.exec("c1", "e1", "sh", "-c", "exit 33")
    assert (await shim.wait("c1", "e1")).exit_status == 33
    rig.track(after := await daemon_of(shim.task))
    assert after != before


async def test_an_old_server_reports_exits_through_deaths_and_further_upgrades(
    rig: Rig, survivors: Start, following: Build
) -> None:
    """Each of the fork servers is the parent of one process."""
    first = without_kernel(Build.copy(rig.root / "first", "0.0.1"))
    without_kernel(following)
    shim = await run_ending(rig, survivors)
    execs = []
    servers = set()
    for number, build in enumerate([following, first, following, first], start=1):
        servers.add(await upgrade(rig, shim, build))
        execs.append(f"e{number}")
        await exec_until_term(shim, execs[-1], number)
        await shim.replace()
    assert len(servers) == 3
    assert await end(shim, *execs, "") == [1, 2, 3, 4, 7]


async def test_no_exit_is_lost_at_any_time_of_moves_and_deaths(
    rig: Rig, survivors: Start, following: Build
) -> None:
    """Processes end at random times, while their daemon moves and is killed."""
    moments = random.Random(3)
    first = without_kernel(Build.copy(rig.root / "first", "0.0.1"))
    without_kernel(following)
    shim = await run_ending(rig, survivors)
    servers = itertools.cycle([await build.server() for build in (following, first)])

    async def end_later(pid: int) -> None:
        await trio.sleep(moments.uniform(0, 0.1))
        os.kill(pid, signal.SIGTERM)

    async def kill_later() -> None:
        pid = await daemon_of(shim.task)
        rig.track(pid)
        await trio.sleep(moments.uniform(0, 0.1))
        with suppress(ProcessLookupError):  # it has moved
            os.kill(pid, signal.SIGKILL)

    execs: dict[str, int] = {}
    pids: dict[str, int] = {}
    for turn in range(12):
        for number in range(3):
            exec_id, code = f"e{turn}-{number}", 10 + 3 * turn + number
            execs[exec_id] = code
            pids[exec_id] = await exec_until_term(shim, exec_id, code)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(move, shim, next(servers))
            nursery.start_soon(kill_later)
            for exec_id in moments.sample(sorted(pids), 2):  # the others go on through moves
                nursery.start_soon(end_later, pids.pop(exec_id))
        rig.track(await daemon_of(shim.task))
    for pid in pids.values():
        os.kill(pid, signal.SIGTERM)
    found = {one: (await shim.wait("c1", one)).exit_status for one in execs}
    assert found == execs
    assert await end(shim, "") == [7]


async def test_exits_before_the_question_are_kept_and_their_processes_reaped(
    rig: Rig, survivors: Start, following: Build
) -> None:
    """The init process ends only when the exec is reaped, five seconds after the death."""
    restoring = "            await service.restore(inherited)\n"
    wait = f"while not os.path.exists({str(rig.root / 'go')!r}): await trio.sleep(0.01)\n"
    without_kernel(following).edit(
        "shim/daemon.py", lambda text: text.replace(restoring, f"            {wait}{restoring}")
    )
    following.edit(
        "shim/start/replacement.py", lambda text: text.replace("5.0, 10\n", "5.0, 60\n")
    )
    shim = await survivors(bundle := rig.bundle("c1", *until_term(7)))
    pid = await shim.run(bundle)
    exec_pid = await exec_until_term(shim, "e1", 3)
    before = await daemon_of(shim.task)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upgrade, rig, shim, following)
        await wait_gone([before], 20)
        os.kill(exec_pid, signal.SIGTERM)
        await wait_gone([exec_pid])
        os.kill(pid, signal.SIGTERM)
        await wait_gone([pid], 12)
        (rig.root / "go").touch()
    assert [(await shim.wait("c1", one)).exit_status for one in ("e1", "")] == [3, 7]


async def test_a_stopped_old_server_ends_when_its_last_orphan_is_over(
    rig: Rig, survivors: Start, following: Build, server: Server
) -> None:
    without_kernel(following)
    shim = await run_ending(rig, survivors)
    await exec_until_term(shim, "e1", 3)
    old = parent_of(await daemon_of(shim.task))
    (path,) = server.sockets
    await upgrade(rig, shim, following)
    pidfd = os.pidfd_open(old)
    try:
        with trio.fail_after(10 * PATIENCE):  # the daemon that has moved ends after its answer
            while server.ask(b"status", path)["keeps"]:
                await trio.sleep(0.01)
        answer = server.ask(b"stop", path)
        assert [answer[name] for name in ("stopped", "keeps", "reports")] == [True, 0, 1]
        await exec_until_term(shim, "e2", 4)
        assert await end(shim, "e1", "e2") == [3, 4]
        assert not select.select([pidfd], [], [], 0)[0]
        assert await end(shim, "") == [7]
        with trio.fail_after(10 * PATIENCE):
            await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)
    await shim.delete("c1")


async def test_the_exits_of_a_killed_old_servers_orphans_are_unknown_and_others_true(
    rig: Rig, survivors: Start, following: Build
) -> None:
    without_kernel(following)
    shim = await run_ending(rig, survivors)
    await exec_until_term(shim, "e1", 3)
    old = await upgrade(rig, shim, following)
    await exec_until_term(shim, "e2", 4)
    os.kill(old, signal.SIGKILL)
    await wait_gone([old])
    with trio.fail_after(30 * PATIENCE):
        assert await end(shim, "e1", "e2") == [UNKNOWN_STATUS, 4]
        assert await end(shim, "") == [UNKNOWN_STATUS]
    record = read_exit(str(rig.root / "c1"))
    assert record is not None
    assert record.reason
    await shim.delete("c1")


async def test_the_kernel_does_not_matter_for_a_check(
    rig: Rig, survivors: Start, following: Build
) -> None:
    without_kernel(following)
    await run_ending(rig, survivors)
    done = await following.shimctl("upgrade", "--all", "--check")
    assert (done.returncode, done.stdout) == (0, f"c1  {VERSION} -> {NEXT}\n")


async def test_a_daemon_of_a_killed_fork_server_is_upgraded_only_with_the_kernels_report(
    rig: Rig, survivors: Start, following: Build, server: Server
) -> None:
    """The next fork server keeps it, and is not its parent."""
    shim = await run_ending(rig, survivors)
    await kill_server(server, shim)
    await survivors(rig.bundle("c2", "true"))
    await wait_kept(shim)
    old = without_kernel(Build.copy(rig.root / "old", "0.0.1"))
    for args in ([], ["--check"]):
        done = await old.shimctl("upgrade", "c1", *args)
        assert done.returncode == 125
        assert "the fork server that started its shim has ended" in done.stderr
    if keeps_status():
        done = await following.shimctl("upgrade", "c1")
        assert (done.returncode, done.stderr) == (0, "")
        rig.track(await daemon_of(shim.task))
        assert await end(shim, "") == [7]


async def test_an_old_server_reports_exits_after_the_death_of_the_new_one(
    rig: Rig, survivors: Start, following: Build, server: Server
) -> None:
    """The daemon takes the channel along to the next server that keeps it."""
    without_kernel(following)
    shim = await run_ending(rig, survivors)
    await upgrade(rig, shim, following)
    new = parent_of(daemon := await daemon_of(shim.task))
    os.kill(new, signal.SIGKILL)
    await wait_gone([new])
    await wait_kept(shim, kept=False)
    await following.server()
    await wait_kept(shim)
    assert await daemon_of(shim.task) == daemon
    await shim.replace()
    assert await end(shim, "") == [7]
    del server
