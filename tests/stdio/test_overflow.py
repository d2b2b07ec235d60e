"""Output that no client reads, under ``spool`` and ``drop``: pipes, with the tests as the
manager.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from shim.linux import fifos
from shim.stdio.spool import Overflow
from tests.e2e.waiting import PATIENCE
from tests.stdio.conftest import LogLines, read_all, read_some, read_until, reader
from tests.stdio.overflowing import (
    MIB,
    MUCH,
    kept_of,
    put,
    read_to_marker,
    run_to_written,
    spool_in,
)
from tests.stdio.whole.client import wait_until

if TYPE_CHECKING:
    from shim.linux.fifos import Fd
    from tests.stdio.conftest import Rig

pytestmark = pytest.mark.usefixtures("short_wait")


@pytest.mark.slow
async def test_a_process_under_spool_never_stops_and_a_later_reader_has_it_all(rig: Rig) -> None:
    data = put(rig, "data", 50 * MIB)
    async with rig.open(
        stdout=rig.path("out"), overflow=spool_in(rig.directory / "spool")
    ) as stdio:
        wait = await rig.run(stdio, f"cat {rig.directory}/data")
        with trio.fail_after(20 * PATIENCE):
            assert (await wait()).exit_status == 0
        with trio.fail_after(5 * PATIENCE):
            await stdio.wait_read()  # nobody reads: nobody is waited for
        received = await read_all(reader(rig.path("out")))
        assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
        with trio.fail_after(5 * PATIENCE):
            await stdio.drain()


async def test_the_pipe_of_a_process_is_closed_while_its_output_is_stored(rig: Rig) -> None:
    """And nothing counts as stored once a reader has it."""
    put(rig, "data", MUCH)
    async with rig.open(
        stdout=rig.path("out"), overflow=spool_in(rig.directory / "spool")
    ) as stdio:
        wait = await rig.run(stdio, f"cat {rig.directory}/data")
        assert (await wait()).exit_status == 0
        [relay] = stdio._outputs
        with trio.fail_after(20 * PATIENCE):
            await relay.source_done.wait()
        assert relay.backlog
        assert relay.source.number < 0
        assert len(await read_all(reader(rig.path("out")))) == MUCH
        assert not relay.backlog


async def test_output_that_a_reader_has_is_not_pending_while_its_pipe_is_open(rig: Rig) -> None:
    out = reader(rig.path("out"))
    async with rig.open(
        stdout=rig.path("out"), overflow=spool_in(rig.directory / "spool")
    ) as stdio:
        wait = await rig.run(stdio, "echo said; sleep 60 &")
        assert (await wait()).exit_status == 0
        [relay] = stdio._outputs
        with trio.fail_after(20 * PATIENCE):
            assert await read_some(out, 100) == b"said\n"
            await relay.wait_drained()
        assert not relay.source_done.is_set()
        assert not relay.backlog


@pytest.mark.slow
@pytest.mark.parametrize("width", [7, 10])
async def test_a_process_under_drop_never_stops_and_a_marker_says_what_is_missing(
    rig: Rig, width: int
) -> None:
    data = put(rig, "data", 50 * MIB, width=width)
    async with rig.open(rig.path("in"), rig.path("out"), overflow=Overflow()) as stdio:
        script = f"cat {rig.directory}/data; touch {rig.directory}/written; cat"
        await run_to_written(rig, stdio, script)
        out = reader(rig.path("out"))
        received = await read_to_marker(out)
        kept, _ = kept_of(received, data)
        assert len(kept) >= MIB  # the size of a fifo
        client = fifos.open_writer(rig.path("in"))
        os.write(client.number, b"and what comes after\n")
        assert await read_until(out, 21) == b"and what comes after\n"
        client.close()
        stdio.close_stdin()
        assert await read_all(out) == b""


async def test_lines_written_one_by_one_fill_a_fifo_to_its_last_byte(rig: Rig) -> None:
    """With one page for each, only 256 of them would be kept."""
    async with rig.open(stdout=rig.path("out"), overflow=Overflow()) as stdio:
        process = fifos.Fd(os.dup(stdio.child_fds[1]))
        await stdio.started()
        for number in range(5000):
            os.write(process.number, b"line %d\n" % number)
            if not number % 10:
                await trio.testing.wait_all_tasks_blocked()
        await wait_until(lambda: not fifos.unread(process))
        process.close()
        received = await read_all(reader(rig.path("out")))
    assert received == b"".join(b"line %d\n" % number for number in range(5000))


@pytest.mark.slow
@pytest.mark.parametrize("overflow", ["spool", "drop"])
async def test_a_slow_reader_sets_the_pace_and_misses_nothing(
    rig: Rig, overflow: str, said: LogLines
) -> None:
    data = put(rig, "data", 20 * MIB)
    # A directory that is none: a command that needs it would fail.
    nowhere = rig.directory / "data"
    chosen = Overflow() if overflow == "drop" else spool_in(nowhere)
    out = reader(rig.path("out"))
    async with rig.open(stdout=rig.path("out"), overflow=chosen) as stdio:
        await rig.run(stdio, f"cat {rig.directory}/data")
        received = bytearray()
        while chunk := await read_some(out, 40_000):
            received += chunk
            await trio.sleep(0.001)
    out.close()
    assert received == data
    assert not said("dropped")


async def test_a_reader_that_comes_and_goes_loses_and_doubles_nothing(rig: Rig) -> None:
    digest, size = hashlib.sha256(), 100 * MIB
    block = os.urandom(MIB)
    (rig.directory / "data").write_bytes(block)
    for _ in range(100):
        digest.update(block)
    got = hashlib.sha256()
    script = f"for n in $(seq 100); do cat {rig.directory}/data; done"
    overflow = spool_in(rig.directory / "spool", 128 * MIB)
    async with rig.open(stdout=rig.path("out"), overflow=overflow) as stdio:
        wait = await rig.run(stdio, script)
        left = size
        for part in (1, 70_001, 3 * MIB, 4095, 20 * MIB + 17, MIB, 5):
            await trio.sleep(0.15)  # away for longer than is waited for
            out = reader(rig.path("out"))
            while part:
                chunk = await read_some(out, min(part, 1 << 16))
                got.update(chunk)
                part, left = part - len(chunk), left - len(chunk)
            out.close()
        assert (await wait()).exit_status == 0
        out = reader(rig.path("out"))
        while chunk := await read_some(out, 1 << 20):
            got.update(chunk)
            left -= len(chunk)
        out.close()
    assert left == 0
    assert got.digest() == digest.digest()


async def test_stderr_flows_while_stdout_is_spooled(rig: Rig) -> None:
    data = put(rig, "data", MUCH)
    err = reader(rig.path("err"))
    overflow = spool_in(rig.directory / "spool")
    async with rig.open(
        stdout=rig.path("out"), stderr=rig.path("err"), overflow=overflow
    ) as stdio:
        script = f"cat {rig.directory}/data; echo done >&2; exec 2>&-; read x < {rig.path('in')}"
        await rig.run(stdio, script)
        with trio.fail_after(10 * PATIENCE):
            assert await read_all(err) == b"done\n"
        fifos.open_writer(rig.path("in")).close()
        assert await read_all(reader(rig.path("out"))) == data


@pytest.mark.parametrize("overflow", ["spool", "drop"])
async def test_with_nobody_reading_or_writing_nothing_is_done(rig: Rig, overflow: str) -> None:
    put(rig, "data", MUCH)
    chosen = Overflow() if overflow == "drop" else spool_in(rig.directory / "spool")
    async with rig.open(stdout=rig.path("out"), stderr=rig.path("err"), overflow=chosen) as stdio:
        script = f"cat {rig.directory}/data; touch {rig.directory}/written; exec sleep 1000"
        others = children()  # daemons that other tests share
        wait = await rig.run(stdio, script)
        await wait_until((rig.directory / "written").exists)
        await trio.sleep(0.3)
        before = time.process_time()
        await trio.sleep(0.5)  # this is the measurement
        assert time.process_time() - before < 0.02
        await stdio.aclose()
        (pid,) = children() - others
        os.kill(pid, signal.SIGTERM)
        await wait()


def children() -> set[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return {int(word) for word in file.read().split()}


@pytest.mark.slow
@pytest.mark.usefixtures("patient_exit")
async def test_a_reader_that_is_there_has_the_spool_before_the_exit_is_told(rig: Rig) -> None:
    data = put(rig, "data", 32 * MIB)
    overflow = spool_in(rig.directory / "spool")
    async with rig.open(stdout=rig.path("out"), overflow=overflow) as stdio:
        wait = await rig.run(stdio, f"cat {rig.directory}/data; sleep 0.3")
        received = bytearray()
        out = reader(rig.path("out"))

        async def read() -> None:
            await wait()
            while chunk := await read_some(out, 1 << 17):
                received.extend(chunk)
                await trio.sleep(0.01)  # so that it takes more than two seconds

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await wait()
            await trio.sleep(0.01)
            with trio.fail_after(12 * PATIENCE):
                await stdio.wait_read()
            nursery.cancel_scope.cancel()
        out.close()
    assert bytes(received) == data


async def test_the_drain_of_a_spool_nobody_reads_takes_its_time_and_no_more(rig: Rig) -> None:
    put(rig, "data", MUCH)
    overflow = spool_in(rig.directory / "spool")
    async with rig.open(stdout=rig.path("out"), overflow=overflow) as stdio:
        wait = await rig.run(stdio, f"cat {rig.directory}/data")
        await wait()
        began = trio.current_time()
        await stdio.drain(0.3)
        assert 0.3 <= trio.current_time() - began < 5 * PATIENCE


async def test_a_reader_that_comes_during_the_drain_has_it_all(rig: Rig) -> None:
    data = put(rig, "data", MUCH)
    received = []
    overflow = spool_in(rig.directory / "spool")
    async with rig.open(stdout=rig.path("out"), overflow=overflow) as stdio:
        wait = await rig.run(stdio, f"cat {rig.directory}/data")
        await wait()

        async def come() -> None:
            await trio.sleep(0.3)
            received.append(await read_all(reader(rig.path("out"))))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come)
            with trio.fail_after(8 * PATIENCE):
                await stdio.drain()
    assert received == [data]


async def test_a_background_child_that_writes_on_does_not_delay_the_drain(rig: Rig) -> None:
    async def read(out: Fd) -> None:
        while await read_some(out):
            pass

    out = reader(rig.path("out"))
    async with rig.open(stdout=rig.path("out"), overflow=Overflow()) as stdio:
        wait = await rig.run(stdio, "yes & echo done")
        await wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, out)
            with trio.fail_after(3 * PATIENCE):
                await stdio.drain()
            nursery.cancel_scope.cancel()
        await stdio.aclose()
    out.close()
