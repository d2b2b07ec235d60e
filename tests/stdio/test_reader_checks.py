"""How often a relay checks for a reader after the end of its source, in virtual time.

The kernel does not report a new reader to a writer, so the relay checks with growing pauses.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from shim.linux import fifos
from shim.stdio.relay import SpliceRelay
from tests.stdio.conftest import read_all, reader
from tests.stdio.test_readers import LINES

if TYPE_CHECKING:
    from pathlib import Path


class Looks(trio.abc.Instrument):
    """Counts how often the tasks of a relay run."""

    def __init__(self) -> None:
        self.number = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.number += task.name.endswith("Relay._run")


@dataclass
class Lone:
    """A relay whose source has ended, with its output in the fifo."""

    path: str
    relay: SpliceRelay

    @classmethod
    async def of(cls, directory: Path, nursery: trio.Nursery, written: bytes = LINES) -> Lone:
        path = str(directory / "fifo")
        os.mkfifo(path)
        source, process = fifos.open_pipe()
        os.set_blocking(source.number, False)
        sink = fifos.open_keep(path)
        relay = SpliceRelay("stdout", source, sink, closes=(source, sink), linger=True)
        os.write(process.number, written)
        process.close()
        relay.start(nursery)
        await relay.source_done.wait()
        return cls(path, relay)


@pytest.mark.parametrize("there", [False, True], ids=["absent", "stuck"])
async def test_a_reader_that_takes_nothing_for_a_day_costs_some_dozen_wake_ups(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, there: bool
) -> None:
    looks = Looks()
    async with trio.open_nursery() as nursery:
        lone = await Lone.of(tmp_path, nursery)
        out = reader(lone.path) if there else None
        trio.lowlevel.add_instrument(looks)
        await trio.sleep(24 * 60 * 60)
        trio.lowlevel.remove_instrument(looks)
        assert 24 < looks.number < 40
        if out is not None:
            out.close()
        await lone.relay.stop()


async def test_after_a_day_a_look_brings_the_end_at_once(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        lone = await Lone.of(tmp_path, nursery)
        await trio.sleep(24 * 60 * 60)
        lone.relay.check_reader()  # the manager asks before it reads
        await trio.sleep(0.3)
        out = reader(lone.path)
        began = trio.current_time()
        assert await read_all(out) == LINES
        assert trio.current_time() - began < 0.5
        await lone.relay.stop()


async def test_a_slow_reader_has_the_end_soon_after_the_last_bytes(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """After any time, since a reader that reads is soon checked again."""
    async with trio.open_nursery() as nursery:
        lone = await Lone.of(tmp_path, nursery)
        out = reader(lone.path)
        received = b""
        while len(received) < len(LINES):
            await trio.sleep(1)
            received += os.read(out.number, 50)
        began = trio.current_time()
        assert await read_all(out) == b""
        assert received == LINES
        assert trio.current_time() - began < 1.1
        await lone.relay.stop()


@pytest.mark.parametrize("pause", [0.15, 0.25], ids=["reads slowly", "stops"])
async def test_an_exit_waits_while_a_reader_reads_something_in_each_fifth_of_a_second(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, pause: float
) -> None:
    async with trio.open_nursery() as nursery:
        lone = await Lone.of(tmp_path, nursery)
        out = reader(lone.path)
        received = b""

        async def read() -> None:
            nonlocal received
            while len(received) < len(LINES):
                await trio.sleep(pause)
                received += os.read(out.number, 50)

        async with trio.open_nursery() as reading:
            reading.start_soon(read)
            await lone.relay.wait_read(0.2)
            assert (received == LINES) == (pause < 0.2)
        out.close()
        await lone.relay.stop()


async def test_a_fast_reader_has_the_end_within_milliseconds(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        lone = await Lone.of(tmp_path, nursery)
        began = trio.current_time()
        assert await read_all(reader(lone.path)) == LINES
        assert trio.current_time() - began < 0.003
        await lone.relay.stop()


async def test_a_reader_that_comes_to_an_empty_fifo_soon_after_the_exit_has_the_end_soon(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        lone = await Lone.of(tmp_path, nursery, b"")
        await trio.sleep(0.01)
        began = trio.current_time()
        assert await read_all(reader(lone.path)) == b""
        assert trio.current_time() - began < 0.02
        await lone.relay.stop()


async def test_the_input_of_a_process_ends_though_it_has_not_read_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Only a fifo is kept open for a reader: a pipe has no other one to come."""
    source, manager = fifos.open_pipe()
    stdin, sink = fifos.open_pipe()
    for fd in (source, sink):
        os.set_blocking(fd.number, False)
    async with trio.open_nursery() as nursery:
        relay = SpliceRelay("stdin", source, sink, closes=(source, sink))
        os.write(manager.number, LINES)
        manager.close()
        relay.start(nursery)
        await trio.testing.wait_all_tasks_blocked()
        assert sink.number < 0
    assert os.read(stdin.number, 2 * len(LINES)) == LINES
    stdin.close()
