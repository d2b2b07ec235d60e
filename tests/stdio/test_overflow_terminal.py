"""Output of a terminal that no client reads, under ``spool`` and ``drop``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from shim.counters import COUNTERS
from shim.linux import fifos
from shim.stdio.spool import Overflow
from tests.e2e.waiting import PATIENCE
from tests.stdio.conftest import read_all, read_some, read_until, reader
from tests.stdio.overflowing import MIB, kept_of, put, spool_in
from tests.stdio.playing import send_terminal
from tests.stdio.whole.client import wait_until

if TYPE_CHECKING:
    from tests.stdio.conftest import Rig


pytestmark = pytest.mark.usefixtures("short_wait")


async def run_to_end(rig: Rig, terminal: fifos.Fd, script: str) -> None:
    child = rig.reaper.spawn(["sh", "-c", script], fds={1: terminal.number})
    with trio.fail_after(20):
        assert (await child.wait()).exit_status == 0


@pytest.mark.parametrize("come", ["before the exit", "after the exit"])
async def test_under_spool_everything_is_there_for_a_later_reader(rig: Rig, come: str) -> None:
    data = put(rig, "data", 8 * MIB)
    overflow = spool_in(rig.directory / "spool")
    async with rig.open(stdout=rig.path("out"), terminal=True, overflow=overflow) as stdio:
        process = send_terminal(stdio)
        await stdio.started()
        await run_to_end(rig, process, f"cat {rig.directory}/data")
        process.close()
        if come == "before the exit":
            out = reader(rig.path("out"))
            received = await read_until(out, len(data))
            stdio.exited()
            with trio.fail_after(5 * PATIENCE):
                received += await read_all(out)
        else:
            with trio.fail_after(5 * PATIENCE):
                await stdio.wait_read()
            with trio.fail_after(10):
                received = await read_all(reader(rig.path("out")))
    assert received == data


async def test_under_drop_the_first_is_kept_and_the_gap_is_marked(rig: Rig) -> None:
    data = put(rig, "data", 8 * MIB, width=10)
    async with rig.open(stdout=rig.path("out"), terminal=True, overflow=Overflow()) as stdio:
        process = send_terminal(stdio)
        before = COUNTERS.dropped
        await stdio.started()
        await run_to_end(rig, process, f"cat {rig.directory}/data")
        relay = stdio._outputs[0]
        # The kernel moves the last bytes to the master later.
        await wait_until(
            lambda: (
                fifos.unread(relay.sink) + relay.backlog + COUNTERS.dropped - before == len(data)
            )
        )
        await trio.testing.wait_all_tasks_blocked()
        out = reader(rig.path("out"))
        received = b""
        while b"dropped]\n" not in received:
            received += await read_some(out)
        os.write(process.number, b"after")
        received += await read_until(out, 5)
        process.close()
        stdio.exited()
        assert await read_all(out) == b""
    kept, after = kept_of(received, data)
    # The size of a fifo, without the ends of pages into which a piece did not fit.
    assert len(kept) > 0.9 * MIB
    assert after == b"after"


async def test_what_comes_while_the_spool_is_read_stays_behind_it(rig: Rig) -> None:
    overflow = spool_in(rig.directory / "spool")
    numbers = [b"%07d\n" % i for i in range(1 << 19)]
    async with rig.open(stdout=rig.path("out"), terminal=True, overflow=overflow) as stdio:
        process = send_terminal(stdio)
        await stdio.started()
        (rig.directory / "first").write_bytes(b"".join(numbers[: 1 << 18]))
        (rig.directory / "second").write_bytes(b"".join(numbers[1 << 18 :]))
        await run_to_end(rig, process, f"cat {rig.directory}/first")
        child = rig.reaper.spawn(["cat", f"{rig.directory}/second"], fds={1: process.number})
        process.close()
        out = reader(rig.path("out"))
        received = b""
        whole = b"".join(numbers)
        while len(received) < len(whole):
            received += await read_some(out, 50_000)
        await child.wait()
        out.close()
    assert received == whole
