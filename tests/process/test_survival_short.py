"""A daemon is killed during the Start of an exec that ends before there is a replacement."""

from __future__ import annotations

import os
import random
import signal
from typing import TYPE_CHECKING

import pytest
import trio

from tests.process.survival import daemon_of
from tests.stdio.conftest import read_all
from tests.stdio.whole.client import Streams

if TYPE_CHECKING:
    from tests.process.rig import Rig
    from tests.process.survival import Start

pytestmark = pytest.mark.cold  # the fork server is the test's own

# SHIM_TEST_KILLS is the number of kills of a longer run.
KILLS = int(os.environ.get("SHIM_TEST_KILLS", "30"))


@pytest.mark.parametrize("longest", [0.0015, 0.03], ids=["at its begin", "at any time"])
async def test_a_short_exec_runs_once_and_never_fails(
    rig: Rig, survivors: Start, longest: float
) -> None:
    """``longest`` is the time in seconds from the call to the kill, at most.

    Its process may be a zombie before the daemon is one.
    """
    numbers = random.Random(1)
    (rig.rootfs() / "runs").unlink(missing_ok=True)
    bundle = rig.bundle("c1", "sleep", "1000")
    shim = await survivors(bundle)
    await shim.run(bundle)
    before = await daemon_of(shim.task)
    read: list[bytes] = []
    for number in range(KILLS):
        exec_id = f"e{number}"
        streams = Streams(rig, exec_id)
        out = streams.reader()
        script = f"echo {number} >>/runs; echo {number}; exit 6"
        await shim.add("c1", exec_id, "sh", "-c", script, **streams.fields("stdout"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shim.start, "c1", exec_id)
            await trio.sleep(numbers.uniform(0, longest))
            os.kill(before, signal.SIGKILL)
            rig.track(before := await daemon_of(shim.task))
        read.append(await read_all(out))
        assert (await shim.wait("c1", exec_id)).exit_status == 6
        await shim.delete("c1", exec_id)
    expected = [f"{number}\n" for number in range(KILLS)]
    assert [one.decode() for one in read] == expected
    assert (rig.rootfs() / "runs").read_text() == "".join(expected)
    await shim.end("c1")
