from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import termios
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from shim.errors import InvalidError, TimedOutError, UnavailableError
from shim.linux.fifos import Fd
from shim.stdio import terminal as module
from tests.e2e.waiting import PATIENCE
from tests.stdio.conftest import read_all, read_some, read_until, reader, write_all, writer
from tests.stdio.playing import send_terminal, write

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.stdio.conftest import Rig


@contextmanager
def burst_of_time() -> Iterator[None]:
    before = time.process_time()
    yield
    assert time.process_time() - before < 0.05


async def test_a_terminal_is_relayed_both_ways(rig: Rig) -> None:
    out = reader(rig.path("out"))
    async with rig.open(rig.path("in"), rig.path("out"), terminal=True) as stdio:
        null = os.stat("/dev/null")  # noqa: PTH116 - compared with an fd's
        assert all(os.path.samestat(os.fstat(fd), null) for fd in stdio.child_fds)
        process = send_terminal(stdio)
        await stdio.started()
        write(process, b"prompt")
        assert await read_until(out, 6) == b"prompt"
        client = writer(rig.path("in"))
        await write_all(client, b"command")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert os.read(process.number, 100) == b"command"
        client.close()
        process.close()
        stdio.exited()
        assert await read_all(out) == b""


@pytest.mark.slow
async def test_everything_written_before_the_exit_is_delivered(rig: Rig) -> None:
    async def check(out: Fd, text: bytes) -> None:
        assert await read_all(out) == text

    for round_ in range(100):
        out = reader(rig.path("out"))
        async with rig.open(stdout=rig.path("out"), terminal=True) as stdio:
            process = send_terminal(stdio)
            await stdio.started()
            text = b"%d " % round_ * 700
            write(process, text)
            process.close()
            with trio.fail_after(2 * PATIENCE):
                if round_ % 10 == 0:  # the reader is late: each drain waits for it
                    await stdio.drain()
                    await check(out, text)
                    continue
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(check, out, text)
                    await stdio.drain()


async def test_a_large_output_comes_whole(rig: Rig) -> None:
    out = reader(rig.path("out"))
    async with rig.open(stdout=rig.path("out"), terminal=True) as stdio:
        master_end = send_terminal(stdio)
        fds = {1: master_end.number}
        child = rig.reaper.spawn(["seq", "500000"], fds=fds)
        await stdio.started()
        master_end.close()
        expected = b"".join(b"%d\n" % i for i in range(1, 500_001))
        assert await read_until(out, len(expected)) == expected
        await child.wait()
    out.close()


async def test_a_terminal_that_was_hung_up_can_be_opened_again(rig: Rig) -> None:
    out = reader(rig.path("out"))
    async with rig.open(stdout=rig.path("out"), terminal=True) as stdio:
        process = send_terminal(stdio)
        name = os.ttyname(process.number)
        await stdio.started()
        process.close()
        await trio.testing.wait_all_tasks_blocked(0.02)
        process = Fd(os.open(name, os.O_RDWR | os.O_NOCTTY))
        write(process, b"again")
        assert await read_until(out, 5) == b"again"
        process.close()
    out.close()


async def test_a_hung_up_terminal_costs_no_cpu_time(rig: Rig) -> None:
    async with rig.open(rig.path("in"), rig.path("out"), terminal=True) as stdio:
        process = send_terminal(stdio)
        await stdio.started()
        process.close()
        client = writer(rig.path("in"))
        os.write(client.number, b"x" * 60000)
        await trio.testing.wait_all_tasks_blocked(0.01)
        with burst_of_time():
            await trio.sleep(0.5)  # this is the measurement
        client.close()


async def test_a_background_child_with_the_terminal_does_not_delay_the_end(rig: Rig) -> None:
    out = reader(rig.path("out"))
    async with rig.open(stdout=rig.path("out"), terminal=True) as stdio:
        process = send_terminal(stdio)
        await stdio.started()
        write(process, b"last")
        with trio.fail_after(PATIENCE):
            await stdio.drain()
            assert await read_all(out) == b"last"
        process.close()


async def test_a_terminal_without_streams_is_read_anyway(rig: Rig) -> None:
    async with rig.open(terminal=True) as stdio:
        process = send_terminal(stdio)
        child = rig.reaper.spawn(["seq", "100000"], fds={1: process.number})
        process.close()
        await stdio.started()
        await child.wait()


async def test_a_terminal_can_be_logged_to_a_file(rig: Rig) -> None:
    async with rig.open(stdout=f"file://{rig.directory}/log", terminal=True) as stdio:
        process = send_terminal(stdio)
        await stdio.started()
        write(process, b"line")
        process.close()
        await stdio.drain()
    assert (rig.directory / "log").read_bytes() == b"line"


async def test_a_size_is_kept_until_there_is_a_terminal(rig: Rig) -> None:
    async with rig.open(stdout=rig.path("out"), terminal=True) as stdio:
        stdio.resize(132, 43)
        process = send_terminal(stdio)
        await stdio.started()

        def size() -> tuple[int, ...]:
            return struct.unpack(
                "HHHH", fcntl.ioctl(process.number, termios.TIOCGWINSZ, b"\0" * 8)
            )[:2]

        assert size() == (43, 132)
        stdio.resize(80, 25)
        assert size() == (25, 80)
        process.close()


async def test_an_invalid_size_is_refused_before_there_is_a_terminal(rig: Rig) -> None:
    async with rig.open(stdout=rig.path("out"), terminal=True) as stdio:
        with pytest.raises(InvalidError, match="65536 columns"):
            stdio.resize(65536, 1)
        process = send_terminal(stdio)
        await stdio.started()
        process.close()


async def test_the_end_of_stdin_hangs_the_terminal_up(rig: Rig) -> None:
    out = reader(rig.path("out"))
    async with rig.open(rig.path("in"), rig.path("out"), terminal=True) as stdio:
        process = send_terminal(stdio)
        await stdio.started()
        client = writer(rig.path("in"))
        await write_all(client, b"exit")
        stdio.close_stdin()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert os.read(process.number, 10) == b"exit"
        write(process, b"bye")
        client.close()
        assert await read_all(out) == b"bye"
        await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(OSError, match="error") as caught:
            write(process, b"nobody is there")
        assert caught.value.errno == errno.EIO
        process.close()
        stdio.resize(1, 1)


async def test_a_runtime_that_sends_no_terminal_is_not_waited_for_for_ever(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CONSOLE", 0.05)
    async with rig.open(stdout=rig.path("out"), terminal=True) as stdio:
        with pytest.raises(TimedOutError):
            await stdio.started()
        await stdio.drain()


async def test_what_is_no_terminal_is_refused(rig: Rig) -> None:
    async with rig.open(stdout=rig.path("out"), terminal=True) as stdio:
        assert stdio.console_socket is not None
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(stdio.console_socket)
            socket.send_fds(sock, [b"x"], [sock.fileno()])
        with pytest.raises(UnavailableError):
            await stdio.started()


async def test_closing_wakes_who_waits_for_the_terminal(rig: Rig) -> None:
    opened = rig.open(stdout=rig.path("out"), terminal=True)
    async with opened as stdio, trio.open_nursery() as nursery:

        async def start() -> None:
            with pytest.raises(UnavailableError):
                await stdio.started()

        nursery.start_soon(start)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(PATIENCE):
            await stdio.aclose()


async def test_the_console_socket_is_private(rig: Rig) -> None:
    async with rig.open(stdout=rig.path("out"), terminal=True) as stdio:
        assert stdio.console_socket is not None
        directory = os.path.dirname(stdio.console_socket)  # noqa: PTH120 - one line of a test
        assert os.stat(directory).st_mode & 0o777 == 0o700  # noqa: PTH116 - the same
        assert len(stdio.console_socket) < 90


async def test_a_slow_client_of_a_terminal_gets_every_byte(rig: Rig) -> None:
    out = reader(rig.path("out"))
    async with rig.open(stdout=rig.path("out"), terminal=True) as stdio:
        process = send_terminal(stdio)
        child = rig.reaper.spawn(["seq", "300000"], fds={1: process.number})
        process.close()
        await stdio.started()
        await trio.testing.wait_all_tasks_blocked(0.1)  # the fifo is full
        expected = b"".join(b"%d\n" % i for i in range(1, 300_001))
        received = b""
        while len(received) < len(expected):
            received += await read_some(out, 5000)
        assert received == expected
        await child.wait()
    out.close()


async def test_a_late_reader_of_a_terminal_gets_what_was_written_and_the_end(rig: Rig) -> None:
    async with rig.open(stdout=rig.path("out"), terminal=True) as stdio:
        process = send_terminal(stdio)
        child = rig.reaper.spawn(["seq", "50000"], fds={1: process.number})
        process.close()
        await stdio.started()
        await child.wait()
        stdio.exited()
        await stdio.drain()
        await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.fail_after(5 * PATIENCE):
            received = await read_all(reader(rig.path("out")))
    assert received == b"".join(b"%d\n" % i for i in range(1, 50_001))


async def test_what_is_still_in_the_terminal_at_the_exit_reaches_a_slow_client(rig: Rig) -> None:
    out = reader(rig.path("out"))
    async with rig.open(stdout=rig.path("out"), terminal=True) as stdio:
        process = send_terminal(stdio)
        os.set_blocking(process.number, False)
        await stdio.started()
        text = b"".join(b"%07d\n" % i for i in range(1 << 19))  # more than all of it holds
        written = 0
        with trio.move_on_after(0.5):
            while True:  # until the fifo, the shim and the terminal are full
                with contextlib.suppress(BlockingIOError):
                    written += os.write(process.number, text[written : written + 4096])
                await trio.testing.wait_all_tasks_blocked()
        process.close()
        stdio.exited()
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(5 * PATIENCE):
            assert await read_all(out) == text[:written]
