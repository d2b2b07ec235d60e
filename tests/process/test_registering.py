"""A daemon whose fork server was killed is kept by the next one, and replaced when it dies."""

from __future__ import annotations

import json
import os
import random
import signal
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from shim.api import process_pb2
from shim.api.task_pb2 import PidsRequest, StateRequest
from shim.ttrpc.calls import ConnectionLostError
from tests.e2e.leftovers import fork_servers
from tests.e2e.waiting import PATIENCE
from tests.process.builds import CURRENT
from tests.process.driven import verdict
from tests.process.rig import wait_gone
from tests.process.servers import parent_of
from tests.process.steps import wait_trapped
from tests.process.survival import (
    daemon_of,
    exec_until_term,
    kill_server,
    numbers,
    run_counting,
    run_read,
    status_of,
    until_term,
    wait_kept,
)
from tests.process.test_survival_calls import AFTER, BEFORE, Gate, finish, interrupted
from tests.stdio.conftest import read_all, read_until
from tests.stdio.whole.client import Streams, close_stdin

if TYPE_CHECKING:
    from tests.process.rig import Rig
    from tests.process.servers import Server
    from tests.process.survival import Start

pytestmark = pytest.mark.cold  # the fork servers are the test's own


async def test_a_daemon_is_kept_by_the_next_fork_server_and_replaced_by_it(
    rig: Rig, server: Server, survivors: Start
) -> None:
    shim, pid, out = await run_read(rig, survivors)
    exits: list[int] = []

    async def wait() -> None:
        exits.append((await shim.wait("c1")).exit_status)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        daemon = await daemon_of(shim.task)
        await kill_server(server, shim)
        assert (await status_of(shim))["waits"]
        output = await read_until(out, 100)
        await shim.life_of_exec("c1", "e1", 3)  # while no server is there
        other = await survivors(second := rig.bundle("c2", "true"))
        await wait_kept(shim)
        assert (await daemon_of(shim.task)) == daemon
        assert await shim.replace() != daemon
        new = await server.wait_up()
        assert parent_of(await daemon_of(shim.task)) == new
        assert (await status_of(shim))["server"] == new
        state = await shim.task.State(StateRequest(id="c1"), timeout=5)
        assert (state.pid, state.status) == (pid, process_pb2.RUNNING)
        await shim.life_of_exec("c1", "e2", 4)
        output += await read_until(out, 100)
        assert not exits
        await shim.kill("c1", number=signal.SIGTERM)
    assert exits == [7]
    assert (await shim.delete("c1")).exit_status == 7
    assert numbers(output + await read_all(out)) > 30
    await verdict(rig, shim.oracle, "c1")
    await other.run(second)
    await other.wait("c2")
    await other.delete("c2")


async def test_a_daemon_that_was_started_without_an_answer_of_the_server_registers_later(
    rig: Rig, server: Server, survivors: Start
) -> None:
    await server.start(rig.bundle("c0", "true"))
    stopped = await server.wait_up()
    os.kill(stopped, signal.SIGSTOP)
    try:
        shim, pid, out = await run_read(rig, survivors)
        assert not (await status_of(shim))["survives"]
        await shim.exec("c1", "before", "sh", "-c", "exit 5")
    finally:
        os.kill(stopped, signal.SIGCONT)
    await wait_kept(shim)
    assert (await status_of(shim))["server"] == stopped
    await shim.replace()
    assert (await shim.wait("c1", "before")).exit_status == 5
    state = await shim.task.State(StateRequest(id="c1"), timeout=5)
    assert (state.pid, state.status) == (pid, process_pb2.RUNNING)
    await shim.life_of_exec("c1", "after", 4)
    await shim.kill("c1", number=signal.SIGTERM)
    output = await read_all(out)
    assert (await shim.wait("c1")).exit_status == 7
    await shim.delete("c1", "before")
    await shim.delete("c1")
    assert numbers(output) > 1
    await verdict(rig, shim.oracle, "c1")


async def test_processes_of_before_and_since_the_servers_death_have_their_exits(
    rig: Rig, server: Server, survivors: Start
) -> None:
    streams = Streams(rig, "e")
    out = streams.reader()
    shim, _ = await run_counting(rig, survivors)
    await shim.add("c1", "added", "sh", "-c", "exit 4")
    await shim.exec("c1", "over", "sh", "-c", "exit 6")
    assert (await shim.wait("c1", "over")).exit_status == 6
    before = await shim.exec(
        "c1", "before", "sh", "-c", "cat; exit 5", **streams.fields("stdin", "stdout")
    )
    writer = streams.writer()
    await kill_server(server, shim)
    since = await exec_until_term(shim, "since", 3)
    await shim.delete("c1", "over")
    await survivors(rig.bundle("c2", "true"))
    await wait_kept(shim)
    later = await exec_until_term(shim, "later", 3)
    os.kill(await daemon_of(shim.task), signal.SIGKILL)
    os.kill(since, signal.SIGTERM)
    assert (await shim.wait("c1", "since")).exit_status == 3
    rig.track(await daemon_of(shim.task))
    listed = await shim.task.Pids(PidsRequest(id="c1"), timeout=5)
    assert {before, later} <= {process.pid for process in listed.processes}
    os.write(writer.number, b"after")
    assert await read_until(out, 5) == b"after"
    writer.close()
    await shim.task.CloseIO(close_stdin("c1", "before"), timeout=5)
    assert (await shim.wait("c1", "before")).exit_status == 5
    assert await read_all(out) == b""
    await shim.start("c1", "added")
    assert (await shim.wait("c1", "added")).exit_status == 4
    os.kill(later, signal.SIGTERM)
    assert (await shim.wait("c1", "later")).exit_status == 3
    assert await shim.end("c1", signal.SIGTERM) == 7
    await verdict(rig, shim.oracle, "c1")


@pytest.mark.parametrize("work", [BEFORE, AFTER], ids=["before", "after"])
async def test_an_exec_that_the_runtime_starts_during_the_kill_is_followed(
    rig: Rig, server: Server, survivors: Start, work: str
) -> None:
    """The runtime command is a child of init then, and so is the exec."""
    gate = Gate(rig, "exec", work)
    bundle = rig.bundle("c1", "sleep", "1000")
    shim = await survivors(bundle)
    await shim.run(bundle, options=rig.options(binary_name=gate.path))
    await kill_server(server, shim)
    await survivors(rig.bundle("c2", "true"))
    await wait_kept(shim)
    await shim.add("c1", "e1", *until_term(6))
    pid = await interrupted(shim, gate, lambda: shim.start("c1", "e1"))
    assert parent_of(pid) not in (await daemon_of(shim.task), await server.wait_up())
    await wait_trapped(pid)
    await shim.kill("c1", "e1", number=signal.SIGTERM)
    assert (await shim.wait("c1", "e1")).exit_status == 6
    await shim.delete("c1", "e1")
    await finish(shim)


async def test_a_daemon_that_ends_on_purpose_is_not_replaced(
    rig: Rig, server: Server, survivors: Start
) -> None:
    shim = await survivors(rig.bundle("c1", "true"))
    daemon = await daemon_of(shim.task)
    await kill_server(server, shim)
    await survivors(rig.bundle("c2", "true"))
    await wait_kept(shim)
    assert server.ask(b"status")["daemons"] == 2
    os.kill(daemon, signal.SIGTERM)
    await wait_gone([daemon])
    with trio.fail_after(20 * PATIENCE):
        while server.ask(b"status")["daemons"] != 1:
            await trio.sleep(0.01)


async def wait_server(server: Server, before: int) -> int:
    """Wait until another server than ``before`` listens; return its pid."""
    with trio.fail_after(20 * PATIENCE):
        while (pid := await server.wait_up()) == before:
            await trio.sleep(0.01)
    return pid


async def test_one_of_the_daemons_starts_a_fork_server_for_all(
    rig: Rig, server: Server, survivors: Start
) -> None:
    shims = [await survivors(rig.bundle(f"c{number}", "true")) for number in range(4)]
    before = await server.wait_up()
    os.kill(before, signal.SIGKILL)
    after = await wait_server(server, before)
    for shim in shims:
        await wait_kept(shim)
    daemons = [await daemon_of(shim.task) for shim in shims]
    assert parent_of(after) in daemons
    made = {parent_of(pid) for pid in fork_servers(str(rig.root)) if pid != after}
    assert made <= {after}  # its spare child
    assert server.ask(b"status")["daemons"] == 4
    for shim in shims:
        await shim.replace()  # also the server's parent
    assert await server.wait_up() == after


async def test_a_server_that_daemons_started_is_followed_by_another_only_after_a_minute(
    rig: Rig, server: Server, survivors: Start
) -> None:
    shim = await survivors(rig.bundle("c1", "true"))
    before = await server.wait_up()
    os.kill(before, signal.SIGKILL)
    after = await wait_server(server, before)
    await wait_kept(shim)
    [path] = server.directory.glob(".*.again")
    started = path.stat().st_mtime
    os.kill(after, signal.SIGKILL)
    await wait_kept(shim, kept=False)
    await trio.sleep(1.5)  # a server takes 0.3 seconds
    assert server.ask(b"status") is None
    assert path.stat().st_mtime == started
    await survivors(rig.bundle("c2", "true"))
    await wait_kept(shim)


async def test_no_daemon_starts_a_fork_server_after_one_that_ended_on_purpose(
    rig: Rig, server: Server, survivors: Start
) -> None:
    shim = await survivors(rig.bundle("c1", "true"))
    pid = await server.wait_up()
    os.kill(pid, signal.SIGTERM)
    await wait_gone([pid])
    await wait_kept(shim, kept=False)
    await survivors(rig.bundle("c2", "true"))
    await wait_kept(shim)
    assert list(server.directory.glob(".*.again")) == []


async def test_a_daemon_that_waits_is_reported_and_can_be_upgraded_when_it_is_kept_again(
    rig: Rig, server: Server, survivors: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTAINERD_STATE", str(rig.root))
    shim, pid = await run_counting(rig, survivors)
    await kill_server(server, shim)
    before = await daemon_of(shim.task)
    findings = json.loads((await CURRENT.shimctl("doctor", "-o", "json")).stdout)["findings"]
    [found] = [one for one in findings if one["subject"] == "survive"]
    assert found["text"].startswith("1 have no fork server")
    assert found["text"].endswith("/c1")
    assert found["remedy"].endswith(f"`shimctl forkserver warm --like {before}`")
    done = await CURRENT.shimctl("upgrade", "c1", "--force")
    assert done.returncode == 125
    assert "its fork server has ended, and no other one keeps it yet" in done.stderr
    done = await CURRENT.shimctl("forkserver", "warm", "--like", str(before))
    assert done.returncode == 0, done.stderr
    await wait_kept(shim)
    done = await CURRENT.shimctl("upgrade", "c1", "--force")
    assert (done.returncode, done.stderr) == (0, "")
    rig.track(after := await daemon_of(shim.task))
    assert after != before
    state = await shim.task.State(StateRequest(id="c1"), timeout=5)
    assert (state.pid, state.status) == (pid, process_pb2.RUNNING)
    await shim.replace()
    assert await shim.end("c1", signal.SIGTERM) == 7
    await verdict(rig, shim.oracle, "c1")


async def test_without_server_and_daemon_the_connection_ends(
    rig: Rig, server: Server, survivors: Start
) -> None:
    shim, _ = await run_counting(rig, survivors)
    daemon = await daemon_of(shim.task)
    for pid in (await server.wait_up(), daemon):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(ConnectionLostError):
        await shim.task.State(StateRequest(id="c1"), timeout=20)


async def test_no_order_of_kills_of_servers_and_daemons_loses_anything(
    rig: Rig, server: Server, survivors: Start
) -> None:
    kills = int(os.environ.get("SHIM_TEST_KILLS", "8"))
    rng = random.Random(os.environ.get("SHIM_TEST_SEED", "1"))
    shim, _, out = await run_read(rig, survivors)
    read: list[bytes] = []

    async def read_out() -> None:
        read.append(await read_all(out))

    counts = {"server": 0, "daemon": 0}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_out)
        for number in range(kills):
            if rng.random() < 0.5:
                await kill_server(server, shim)
                counts["server"] += 1
                if rng.random() < 0.5:
                    await shim.life_of_exec("c1", f"a{number}", number % 100)
                other = await survivors(rig.bundle(f"o{number}", "true"))
                await wait_kept(shim)
                os.kill(await daemon_of(other.task), signal.SIGTERM)
            else:
                await shim.replace()
                counts["daemon"] += 1
            await shim.life_of_exec("c1", f"e{number}", number % 100)
        assert await shim.end("c1", signal.SIGTERM) == 7
    assert numbers(read[0]) > 10
    await verdict(rig, shim.oracle, "c1")
    print(f"killed: {counts}")
