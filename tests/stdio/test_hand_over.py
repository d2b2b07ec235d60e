"""The output of a process reaches its reader before the exit is published.

Source: containerd pkg/cio/io_unix.go: a client of containerd 2 closes its end of the
fifos as soon as it hears of the exit; dockerd 20.10 does when Delete has returned.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio

from shim.linux import fifos
from shim.stdio import streams
from tests.e2e.waiting import PATIENCE
from tests.stdio.conftest import read_some, reader
from tests.stdio.playing import send_terminal

if TYPE_CHECKING:
    from shim.linux.fifos import Fd
    from tests.stdio.conftest import Rig

HALF_A_FIFO = 500_000  # bytes


class Client:
    """Reads a little at a time, and leaves when it hears of the exit."""

    def __init__(self, fd: Fd) -> None:
        self.received = bytearray()
        self._fd = fd

    async def read(self) -> None:
        while chunk := await read_some(self._fd, 20_000):
            self.received += chunk
            await trio.sleep(0.002)


@pytest.mark.usefixtures("patient_exit")
@pytest.mark.parametrize("ending", ["", "sleep 60 &"], ids=["alone", "with a child behind it"])
async def test_a_client_that_leaves_at_the_exit_has_everything(rig: Rig, ending: str) -> None:
    client = Client(reader(rig.path("out")))
    async with rig.open(stdout=rig.path("out")) as stdio:
        wait = await rig.run(stdio, f"head -c {HALF_A_FIFO} /dev/zero; {ending}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.read)
            assert (await wait()).exit_status == 0
            await stdio.wait_read()
            nursery.cancel_scope.cancel()
    client._fd.close()
    assert len(client.received) == HALF_A_FIFO


@pytest.mark.usefixtures("patient_exit")
async def test_a_client_of_a_terminal_has_everything_too(rig: Rig) -> None:
    client = Client(reader(rig.path("out")))
    async with rig.open(stdout=rig.path("out"), terminal=True) as stdio:
        process = send_terminal(stdio)
        child = rig.reaper.spawn(["seq", "40000"], fds={1: process.number})
        process.close()
        await stdio.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.read)
            await child.wait()
            await stdio.wait_read()
            nursery.cancel_scope.cancel()
    client._fd.close()
    assert client.received == b"".join(b"%d\n" % n for n in range(1, 40001))


@pytest.mark.usefixtures("patient_exit")
async def test_after_delete_has_drained_nothing_is_left_unread(rig: Rig) -> None:
    client = Client(reader(rig.path("out")))
    async with rig.open(stdout=rig.path("out")) as stdio:
        wait = await rig.run(stdio, f"head -c {HALF_A_FIFO} /dev/zero")
        await wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.read)
            await stdio.drain()
            assert not fifos.unread(client._fd)
            nursery.cancel_scope.cancel()
    client._fd.close()
    assert len(client.received) == HALF_A_FIFO


@pytest.mark.usefixtures("patient_exit")
async def test_a_silent_process_is_told_of_at_once(rig: Rig) -> None:
    out = reader(rig.path("out"))
    async with rig.open(stdout=rig.path("out")) as stdio:
        wait = await rig.run(stdio, "true")
        await wait()
        with trio.fail_after(streams._IDLE_READER / 2):
            await stdio.wait_read()
    out.close()


async def test_nobody_who_stopped_reading_delays_the_exit_for_long(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_READ_WAIT", 60.0 * PATIENCE)
    out = reader(rig.path("out"))
    async with rig.open(stdout=rig.path("out")) as stdio:
        wait = await rig.run(stdio, f"head -c {HALF_A_FIFO} /dev/zero")
        await wait()
        with trio.fail_after(5 * PATIENCE):
            await stdio.wait_read()
        assert fifos.unread(out) == HALF_A_FIFO
    out.close()


async def test_a_child_that_goes_on_writing_delays_the_exit_for_seconds_at_most(rig: Rig) -> None:
    client = Client(reader(rig.path("out")))
    release = os.open(rig.path("in"), os.O_RDWR | os.O_CLOEXEC)  # also before the shell opens it
    async with rig.open(stdout=rig.path("out")) as stdio:
        wait = await rig.run(stdio, f"yes & read x < {rig.path('in')}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.read)
            while not client.received:
                await trio.sleep(0.001)
            os.write(release, b"\n")
            await wait()
            with trio.fail_after(5 * PATIENCE):
                await stdio.wait_read()
            nursery.cancel_scope.cancel()
        client._fd.close()
    os.close(release)


async def test_what_nobody_read_is_there_for_who_comes_later(rig: Rig) -> None:
    """The fifo keeps it as long as the process is not deleted."""
    first = reader(rig.path("out"))
    async with rig.open(stdout=rig.path("out")) as stdio:
        wait = await rig.run(stdio, "echo left behind")
        await wait()
        await stdio.wait_read()
        first.close()
        os.set_blocking((later := reader(rig.path("out"))).number, False)
        assert os.read(later.number, 100) == b"left behind\n"
        later.close()
