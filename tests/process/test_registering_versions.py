"""A daemon whose fork server was killed is kept by one of another version that reads its states.

So a package can be upgraded before its shims are.
"""

from __future__ import annotations

import json
import os
import random
import signal
from typing import TYPE_CHECKING

import pytest
import trio

from shim.api import process_pb2
from shim.api.task_pb2 import StateRequest
from shim.version import VERSION
from tests.process.builds import CURRENT, NEXT, Build
from tests.process.driven import verdict
from tests.process.survival import (
    COUNT,
    Survivor,
    kill_server,
    numbers,
    run_counting,
    run_read,
    status_of,
    wait_kept,
)
from tests.process.test_upgrade import version_of
from tests.stdio.conftest import read_all

if TYPE_CHECKING:
    from tests.process.rig import Rig
    from tests.process.servers import Server
    from tests.process.survival import Start

pytestmark = pytest.mark.cold  # the fork servers are the test's own


async def test_after_an_upgrade_of_the_package_a_daemon_starts_a_server_of_the_new_version(
    rig: Rig, surviving: Server, following: Build
) -> None:
    bundle = rig.bundle("c1", "sh", "-c", COUNT)
    manager = str(rig.root / "events")
    await surviving.start(bundle, PYTHONPATH=str(following.root), TTRPC_ADDRESS=manager)
    shim = Survivor(rig, await rig.connect())
    pid = await shim.run(bundle)
    assert await version_of(shim) == NEXT
    following.edit("shim/version.py", lambda text: text.replace(NEXT, "9.9.10"))
    before = await surviving.wait_up()
    os.kill(before, signal.SIGKILL)
    await wait_kept(shim, kept=False)
    await wait_kept(shim)
    assert await version_of(shim) == NEXT
    await shim.replace()
    assert await version_of(shim) == "9.9.10"
    state = await shim.task.State(StateRequest(id="c1"), timeout=5)
    assert (state.pid, state.status) == (pid, process_pb2.RUNNING)
    assert await shim.end("c1", signal.SIGTERM) == 7
    await verdict(rig, shim.oracle, "c1")


async def test_a_version_that_cannot_read_its_states_is_reported(
    rig: Rig, server: Server, survivors: Start, following: Build
) -> None:
    following.edit(
        "shim/recovery/versions.py",
        lambda text: text.replace('"container": (1,)', '"container": (2,)'),
    )
    reason = (
        f"version {NEXT} cannot continue it: it cannot read version 1 of the container state; "
        "it reads 2"
    )
    shim, _ = await run_counting(rig, survivors)
    await kill_server(server, shim)
    await following.server()
    with trio.fail_after(20):
        while not (log := (rig.root / "c1/log").read_text()).count(reason):
            await trio.sleep(0.01)
    assert 'msg="the fork server does not keep this shim\'s files"' in log
    assert not (await status_of(shim))["survives"]
    findings = json.loads((await CURRENT.shimctl("doctor", "-o", "json")).stdout)["findings"]
    [found] = [one for one in findings if one["subject"] == "survive"]
    assert found["text"].endswith(f"/c1; a fork server refused them: {reason}")
    assert reason in (await CURRENT.shimctl("ps", "-o", "wide")).stdout
    assert reason in (await CURRENT.shimctl("inspect", "c1")).stdout
    done = await following.shimctl("upgrade", "c1")
    assert (done.returncode, "it reads 2" in done.stderr) == (125, True)
    await survivors(rig.bundle("c2", "true"))  # a server of its own version
    await wait_kept(shim)
    await shim.replace()
    assert await version_of(shim) == VERSION
    await shim.kill("c1", number=signal.SIGTERM)
    assert (await shim.wait("c1")).exit_status == 7
    assert reason not in (await CURRENT.shimctl("inspect", "c1")).stdout


async def test_no_moment_of_a_change_of_versions_loses_anything(
    rig: Rig, server: Server, survivors: Start, following: Build
) -> None:
    """A server of one version is killed, one of the other is started, the daemon is killed.

    An exec ends at any time meanwhile.
    """
    turns = int(os.environ.get("SHIM_TEST_KILLS", "2"))
    rng = random.Random(os.environ.get("SHIM_TEST_SEED", "1"))
    shim, pid, out = await run_read(rig, survivors)
    read: list[bytes] = []
    exits: list[int] = []

    async def read_out() -> None:
        read.append(await read_all(out))

    async def wait() -> None:
        exits.append((await shim.wait("c1")).exit_status)

    async def ends(exec_id: str, status: int) -> None:
        assert (await shim.wait("c1", exec_id)).exit_status == status
        await shim.delete("c1", exec_id)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_out)
        nursery.start_soon(wait)
        for turn in range(turns):
            build = CURRENT if turn % 2 else following
            await kill_server(server, shim)
            await build.server()
            async with trio.open_nursery() as execs:
                await wait_kept(shim)
                assert (await status_of(shim))["server"] == await server.wait_up()
                short = f"usleep {rng.randrange(60_000)}; exit {turn % 100}"
                await shim.exec("c1", f"e{turn}", "sh", "-c", short)
                execs.start_soon(ends, f"e{turn}", turn % 100)
                await trio.sleep(rng.uniform(0, 0.03))
                await shim.replace()
            assert await version_of(shim) == build.version
        state = await shim.task.State(StateRequest(id="c1"), timeout=5)
        assert (state.pid, state.status) == (pid, process_pb2.RUNNING)
        assert not exits
        await shim.kill("c1", number=signal.SIGTERM)
    assert exits == [7]
    assert (await shim.delete("c1")).exit_status == 7
    assert numbers(read[0]) > 10
    await verdict(rig, shim.oracle, "c1")
