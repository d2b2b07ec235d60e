"""The child that the fork server has ready before there is a caller."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
import trio

from shim.api.task_pb2 import DeleteResponse, ShutdownRequest
from tests.process.rig import wait_gone
from tests.process.servers import Server, parent_of

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_caller_is_served_by_a_child_that_was_there_before_it_came(
    server: Server,
) -> None:
    bundles = [server.rig.bundle(f"c{i}", "true") for i in range(3)]
    await server.start(bundles[0])
    for bundle in bundles[1:]:
        spare = await server.wait_spare()
        assert await server.start(bundle) == spare
    assert server.ask(b"status")["daemons"] == 3


async def test_a_spare_child_is_no_daemon_and_takes_any_action(server: Server) -> None:
    bundle = server.rig.bundle("c1", "true")
    daemon = await server.start(bundle, TRIO_SHIM_FORKSERVER_IDLE="5")
    await (await server.rig.connect()).Shutdown(ShutdownRequest(), timeout=5)
    await wait_gone([daemon])
    pid = await server.wait_up()
    spare = await server.wait_spare()
    done = server.launch(bundle, "delete")
    assert DeleteResponse.FromString(done.stdout).exit_status == 137
    await wait_gone([spare])
    again = await server.wait_spare()
    answer = server.ask(b"status")
    assert [answer[name] for name in ("pid", "daemons", "idle")] == [pid, 0, 5.0]
    await wait_gone([pid, again], 15)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_a_spare_child_that_died_costs_nothing_but_a_fork(
    server: Server, end: signal.Signals
) -> None:
    bundles = [server.rig.bundle(f"c{i}", "true") for i in range(2)]
    await server.start(bundles[0])
    pid = await server.wait_up()
    spare = await server.wait_spare()
    os.kill(spare, end)
    daemon = await server.start(bundles[1])
    assert daemon != spare
    assert parent_of(daemon) == pid
    assert await server.wait_spare() != spare


async def test_a_spare_child_leaves_with_its_server(server: Server) -> None:
    await server.start(server.rig.bundle("c1", "true"))
    pid = await server.wait_up()
    spare = await server.wait_spare()
    os.kill(pid, signal.SIGKILL)
    await wait_gone([pid, spare])


async def test_many_at_once_are_each_served(server: Server) -> None:
    await server.start(server.rig.bundle("first", "true"))
    pid = await server.wait_up()
    spare = await server.wait_spare()
    bundles = [server.rig.bundle(f"c{i}", "true") for i in range(5)]
    answers: list[str] = []

    async def start(bundle: Path) -> None:
        done = await trio.to_thread.run_sync(server.launch, bundle, "start")
        assert done.returncode == 0, done.stderr
        answers.append(done.stdout.decode())

    async with trio.open_nursery() as nursery:
        for bundle in bundles:
            nursery.start_soon(start, bundle)
    daemons = []
    for server.rig.address in answers:
        server.rig.daemons.clear()
        await server.rig.connect()
        daemons += server.rig.daemons
    assert len(set(daemons)) == 5
    assert spare in daemons
    assert {parent_of(daemon) for daemon in daemons} == {pid}


@pytest.mark.slow
async def test_of_sixty_at_once_none_gives_the_server_up(server: Server) -> None:
    """A server that is busy has heard each of them, so each waits for its turn."""
    await server.start(server.rig.bundle("first", "true"))
    pid = await server.wait_up()
    bundles = [server.rig.bundle(f"c{i}", "true") for i in range(60)]
    daemons = await server.start_all(bundles)
    assert len(daemons) == 60
    assert {parent_of(daemon) for daemon in daemons} == {pid}
