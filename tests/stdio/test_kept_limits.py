"""Relays of a daemon that may be replaced, when no fd is free, or the kernel cannot splice."""

from __future__ import annotations

import os
import resource
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from shim.linux.fifos import Fd, open_keep
from shim.recovery.deposit import Deposit
from shim.stdio import keptoverflow, overflow
from shim.stdio.kept import Kept
from shim.stdio.keptoverflow import KeptOverflowPipeRelay, Stages
from shim.stdio.spool import Overflow
from shim.stdio.terminalsplice import SpliceInputRelay, SpliceTerminalRelay, open_buffer
from tests.e2e.waiting import PATIENCE
from tests.recovery.keeper import Keeper
from tests.stdio.conftest import read_all, read_until, reader
from tests.stdio.overflowing import spool_in
from tests.stdio.test_survival import add_dropped
from tests.stdio.whole.client import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

DATA = b"".join(b"%d\n" % number for number in range(40_000))


@contextmanager
def no_free_fd() -> Iterator[None]:
    """Let no fd be opened in the block."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.fixture
async def kept() -> AsyncIterator[Kept]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    deposit, keeper = Deposit(ours), Keeper(theirs)
    yield Kept(deposit, "io/c//")
    deposit.close()
    keeper.close()


@pytest.mark.parametrize("policy", ["drop", "spool"])
async def test_no_stream_ends_and_each_byte_is_counted(
    tmp_path: Path, kept: Kept, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overflow, "AWAY_AFTER", 0.01)
    monkeypatch.setattr(keptoverflow, "LONG_PAUSE", 0.01)
    os.mkfifo(path := tmp_path / "out")
    source, writer = (Fd(number) for number in os.pipe())
    os.set_blocking(source.number, False)
    sink = open_keep(str(path))
    relay = KeptOverflowPipeRelay(
        "stdout",
        source,
        sink,
        Stages.open(kept, "stdout"),
        closes=(source, sink),
        overflow=spool_in(tmp_path) if policy == "spool" else Overflow(),
    )
    async with trio.open_nursery() as nursery:
        relay.start(nursery)
        with no_free_fd():
            await trio.to_thread.run_sync(os.write, writer.number, DATA[:100_000])
            await wait_until(lambda: relay._waits or relay.is_over)
            assert not relay.is_over
        await trio.to_thread.run_sync(os.write, writer.number, DATA[100_000:])
        writer.close()
        assert add_dropped(await read_all(reader(str(path))), DATA) == len(DATA)
        await relay.stop()


async def test_a_terminal_that_cannot_be_spliced_loses_nothing_in_small_pieces(
    kept: Kept,
) -> None:
    """The buffer holds sixteen pieces, however small; some kernels cannot splice them."""
    source, terminal = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader_, writer = (Fd(number) for number in os.pipe2(os.O_NONBLOCK))
    pieces = [b"%02d" % number * 1200 for number in range(24)]
    with source, terminal:
        source.setblocking(False)
        for piece in pieces:  # each read returns one
            terminal.send(piece)
        relay = SpliceTerminalRelay("terminal", Fd(source.fileno()), writer)
        relay.pipe, relay._splices = open_buffer(), False
        async with trio.open_nursery() as nursery:
            relay.start(nursery)
            with trio.fail_after(5 * PATIENCE):
                assert await read_until(reader_, 24 * 2400) == b"".join(pieces)
            await relay.stop()
    for fd in (relay.pipe, reader_, writer):
        fd.close()


async def test_input_of_a_terminal_that_cannot_be_spliced_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As to a terminal of Linux 5.10.0, splice(2) to a file fails that is opened to append."""
    source, writer = (Fd(number) for number in os.pipe())
    os.set_blocking(source.number, False)
    path = tmp_path / "terminal"
    sink = Fd(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    relay = SpliceInputRelay("stdin", source, sink, closes=(source,), retry_hang_up=True)
    async with trio.open_nursery() as nursery:
        relay.start(nursery)
        for begin in range(0, len(DATA), 50_000):
            part = DATA[begin : begin + 50_000]
            await trio.to_thread.run_sync(os.write, writer.number, part)
        writer.close()
        with trio.fail_after(5 * PATIENCE):
            await relay.source_done.wait()
    assert path.read_bytes() == DATA
    assert capfd.readouterr().err.count("cannot splice to a terminal") == 1
    sink.close()


async def test_stages_that_cannot_be_opened_leave_no_fd(kept: Kept) -> None:
    before = len(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    for free in range(4):  # it needs four at a time
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + free, limits[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                Stages.open(kept, "stdout")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert len(os.listdir("/proc/self/fd")) == before
