"""A reader dies and another one comes, before, during and after the exit: no byte is lost.

A manager that is killed leaves a fifo with bytes in it.  Its successor opens the
fifo as containerd does, by an open(2) that waits for a writer, and has to get
those bytes and then the end.
"""

from __future__ import annotations

import os
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from shim.linux import fifos
from shim.linux.fifos import Fd
from shim.stdio import streams
from shim.stdio.opening import open_stdio
from shim.stdio.spool import Overflow
from shim.stdio.streams import StdioSpec
from tests.e2e.waiting import PATIENCE
from tests.stdio.conftest import open_fds, read_all, read_some, reader
from tests.stdio.playing import send_terminal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from shim.stdio.streams import Stdio
    from tests.stdio.conftest import Rig

LINES = b"".join(b"line %03d\n" % number for number in range(400))
# What happens while a reader is there or away.
BEFORE_OUTPUT, BEFORE_EXIT, DURING_EXIT, AFTER_EXIT = range(4)
NOTHING, PART, ALL = 0, 1000, len(LINES)  # bytes


@dataclass(frozen=True, slots=True)
class Order:
    """The times at which the first reader comes and dies, its share, and the time of the
    second.
    """

    comes: int
    dies: int
    takes: int
    returns: int

    @property
    def told_the_end(self) -> bool:
        """Return whether the first reader got all bytes, and then the end."""
        return self.takes == ALL and self.dies >= DURING_EXIT


def orders() -> Iterator[Order]:
    phases = range(BEFORE_OUTPUT, AFTER_EXIT + 1)
    for comes, dies, returns in product(phases, repeat=3):
        if comes <= dies <= returns:
            for takes in (NOTHING, PART, ALL) if dies > BEFORE_OUTPUT else (NOTHING,):
                yield Order(comes, dies, takes, returns)


async def open_waiting(path: str) -> Fd:
    """Open a fifo to read by an open(2) that waits for a writer."""
    opened: list[Fd] = []

    async def wait() -> None:
        number = await trio.to_thread.run_sync(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
        opened.append(Fd(number))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        with trio.move_on_after(2):
            while not opened:
                await trio.sleep(0.0005)
        in_time = bool(opened)
        if not in_time:
            fifos.open_writer(path).close()  # so that the thread ends
    (fd,) = opened
    if not in_time:
        fd.close()
        pytest.fail("a reader waits for a writer")
    os.set_blocking(fd.number, False)
    return fd


@asynccontextmanager
async def open_process(
    rig: Rig, stream: str = "stdout", overflow: Overflow | None = None
) -> AsyncIterator[tuple[Stdio, Fd]]:
    """Open the stdio of a process, and its end of the one stream that it has."""
    paths = {"stderr" if stream == "stderr" else "stdout": rig.path("out")}
    spec = StdioSpec(**paths, terminal=stream == "terminal")
    host: Any = {"reaper": rig.reaper, "container_id": "redis", "namespace": "test"}
    async with (
        trio.open_nursery() as nursery,
        aclosing(await open_stdio(spec, nursery=nursery, overflow=overflow, **host)) as stdio,
    ):
        if stream == "terminal":
            process = send_terminal(stdio)
        else:
            process = Fd(os.dup(stdio.child_fds[1 if stream == "stdout" else 2]))
        await stdio.started()
        yield stdio, process
        process.close()


async def read_rest(path: str, received: bytearray, ended: trio.Event) -> None:
    """Read to the end as the manager's successor does."""
    received += await read_all(await open_waiting(path))
    ended.set()


async def follow(order: Order, stdio: Stdio, path: str, process: Fd) -> None:
    """Be the process and both readers; check what these received."""
    first, second = bytearray(), bytearray()
    ended, told = trio.Event(), trio.Event()
    out: Fd | None = None

    async def exit_() -> None:
        await stdio.wait_read()
        told.set()

    async with trio.open_nursery() as nursery:
        for phase in range(BEFORE_OUTPUT, AFTER_EXIT + 1):
            if phase == BEFORE_EXIT:
                assert os.write(process.number, LINES) == len(LINES)
            elif phase == DURING_EXIT:
                process.close()
                nursery.start_soon(exit_)
            elif phase == AFTER_EXIT:
                await told.wait()
            await trio.testing.wait_all_tasks_blocked(0.002)  # the relay has seen it
            if phase == order.comes:
                out = reader(path)
            if out is not None and phase == max(order.comes, BEFORE_EXIT):
                while len(first) < order.takes:
                    first += await read_some(out, order.takes - len(first))
            await trio.testing.wait_all_tasks_blocked(0.002)
            if phase == order.dies:
                assert out is not None
                if order.told_the_end:
                    assert await read_some(out) == b""
                out.close()
                out = None
            await trio.testing.wait_all_tasks_blocked(0.002)
            if phase == order.returns and not order.told_the_end:
                nursery.start_soon(read_rest, path, second, ended)
        if not order.told_the_end:
            await ended.wait()
        with trio.fail_after(5 * PATIENCE):
            await stdio.drain()
    assert first + second == LINES


@pytest.fixture
def overflow(request: pytest.FixtureRequest, tmp_path: Path) -> Overflow | None:
    choices = {
        "block": None,
        "drop": Overflow(),
        "spool": Overflow(1 << 20, (f"{tmp_path}/spool",)),
    }
    return choices[request.param]


@pytest.mark.parametrize("overflow", ["block", "drop", "spool"], indirect=True)
@pytest.mark.parametrize("stream", ["stdout", "stderr", "terminal"])
async def test_no_order_of_readers_loses_or_doubles_a_byte(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, overflow: Overflow | None, stream: str
) -> None:
    monkeypatch.setattr(streams, "_IDLE_READER", 0.02)  # which only makes it quicker
    before, tried = open_fds(), 0
    for order in orders():
        try:
            async with open_process(rig, stream, overflow) as (stdio, process):
                with trio.fail_after(10):
                    await follow(order, stdio, rig.path("out"), process)
        except BaseException as exc:
            exc.add_note(f"readers: {order}")
            raise
        tried += 1
    assert tried == 52
    assert open_fds().items() <= before.items()


@pytest.mark.parametrize("overflow", ["block", "drop", "spool"], indirect=True)
async def test_of_many_readers_that_die_each_goes_on_where_the_last_one_stopped(
    rig: Rig, overflow: Overflow | None
) -> None:
    async with rig.open(stdout=rig.path("out"), overflow=overflow) as stdio:
        wait = await rig.run(stdio, "seq 100000")
        await wait()
        await stdio.wait_read()
        received = bytearray()
        for _ in range(20):
            out = await open_waiting(rig.path("out"))
            received += await read_some(out, 10_000)
            await trio.testing.wait_all_tasks_blocked(0.005)
            out.close()
        received += await read_all(await open_waiting(rig.path("out")))
    assert received == b"".join(b"%d\n" % number for number in range(1, 100_001))


@pytest.mark.parametrize("overflow", ["block", "spool"], indirect=True)
async def test_three_hundred_readers_that_die_at_the_exit_leave_every_line(
    rig: Rig, overflow: Overflow | None
) -> None:
    """At any moment: from before the process writes until some time after its end."""
    for turn in range(300):
        async with open_process(rig, overflow=overflow) as (_stdio, process):
            out = reader(rig.path("out"))
            moment = turn % 30
            for step in range(20):
                if step == moment:
                    out.close()
                if step == 10:
                    os.write(process.number, LINES)
                await trio.lowlevel.checkpoint()
            process.close()
            for step in range(20, moment):
                await trio.sleep(0.0002 * (step - 20))
            out.close()
            assert await read_all(await open_waiting(rig.path("out"))) == LINES
