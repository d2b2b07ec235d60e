"""For all orders of writes and reads, the output is complete except for the bytes that the
markers count.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.linux import fifos
from shim.linux.fifos import Fd
from shim.stdio.overflow import AWAY_AFTER, OverflowPipeRelay
from shim.stdio.spool import FirstBytes, Overflow, Ring

if TYPE_CHECKING:
    from shim.stdio.spool import Store

PAGE = 4096
MARKER = re.compile(rb"\n\[trio-shim: (\d+) bytes of output dropped\]\n")
# No two stretches of it are alike, and there is no newline: a marker brings its own.
DATA = b"".join(b"%07d " % i for i in range(50_000))

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 30_000)),
        st.tuples(st.just("read"), st.integers(1, 12_000)),
        st.tuples(st.just("pass"), st.just(0)),
    ),
    max_size=40,
)


async def settle() -> None:
    """Let the relay run until it waits; bounded, in case it never waits."""
    for _ in range(30):
        await trio.lowlevel.checkpoint()


def open_ends(path: str) -> tuple[Fd, Fd, Fd, Fd]:
    """Make a fifo of one page; return the ends of a pipe, then those of the fifo.

    All are non-blocking: a relay's source, the process's end, the relay's sink, a reader.
    """
    os.mkfifo(path)
    sink = fifos.open_keep(path)
    fcntl.fcntl(sink.number, fcntl.F_SETPIPE_SZ, PAGE)
    out = fifos.open_reader(path)
    source, process = fifos.open_pipe()
    for end in (source, process):
        os.set_blocking(end.number, False)
    return source, process, sink, out


async def written_and_read(steps: list[tuple[str, int]], overflow: Overflow) -> tuple[int, bytes]:
    """Do the steps, with a fifo of one page; return how much was written and all that came."""
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock)
    with tempfile.TemporaryDirectory() as directory:
        source, process, sink, out = open_ends(f"{directory}/fifo")
        relay = OverflowPipeRelay("stdout", source, sink, closes=(source, sink), overflow=overflow)
        written, received = 0, b""
        async with trio.open_nursery() as nursery:
            relay.start(nursery)
            for kind, size in steps:
                await settle()
                if kind == "write":
                    written += os.write(process.number, DATA[written : written + size] or b"")
                elif kind == "read":
                    with suppress(BlockingIOError):
                        received += os.read(out.number, size)
                else:
                    clock.jump(AWAY_AFTER + 0.1)
            process.close()
            for _ in range(1000):
                await settle()
                with suppress(BlockingIOError):
                    received += os.read(out.number, 1 << 16)
                if relay.sink.number < 0 and not fifos.unread(out):
                    break
                clock.jump(0.05)  # it looks now and then for a reader
            await relay.stop()
        out.close()
    return written, received


def check(written: int, received: bytes) -> None:
    """Compare the pieces and the markers with the written bytes."""
    pieces = MARKER.split(received)
    at = 0
    for piece, dropped in zip(pieces[::2], [*pieces[1::2], b"0"], strict=True):
        assert piece == DATA[at : at + len(piece)]
        at += len(piece) + int(dropped)
    assert at == written
    assert b"0" not in pieces[1::2], "a marker for nothing"


@pytest.mark.parametrize("limit", [0, PAGE, 9000, 100_000])
@settings(deadline=None, max_examples=150)
@given(steps=STEPS)
def test_nothing_is_lost_doubled_or_moved_but_what_a_marker_tells(
    limit: int, steps: list[tuple[str, int]]
) -> None:
    overflow = Overflow(limit, (tempfile.gettempdir(),)) if limit else Overflow()
    written, received = trio.run(
        written_and_read,
        steps,
        overflow,
        clock=trio.testing.MockClock(),
        strict_exception_groups=True,
    )
    check(written, received)


@pytest.mark.parametrize("place", ["spool", "drop", "full disk"])
def test_a_reader_that_comes_at_the_last_moment_is_told_of_no_loss(place: str) -> None:
    """It takes something just as it is given up: nothing is stored yet, and nothing dropped."""

    @dataclass(frozen=True, slots=True)
    class Watched(Overflow):
        came: ClassVar[list[bytes]] = []

        def open(self) -> Store:
            if not self.came:
                out = fifos.open_reader(self.directories[-1])
                self.came.append(os.read(out.number, PAGE))
                out.close()
            if place == "full disk":
                return Ring(Fd(os.open("/dev/full", os.O_RDWR | os.O_CLOEXEC)), self.limit)
            return Overflow(self.limit, self.directories[:-1]).open()

    async def main() -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = f"{directory}/fifo"
            source, process, sink, out = open_ends(path)
            directories = () if place == "drop" else (directory,)
            overflow = Watched(100_000, (*directories, path))
            relay = OverflowPipeRelay(
                "stdout", source, sink, closes=(source, sink), overflow=overflow
            )
            async with trio.open_nursery() as nursery:
                relay.start(nursery)
                os.write(process.number, DATA[: 3 * PAGE])
                process.close()
                received = b""
                with trio.fail_after(10 * AWAY_AFTER):
                    while not Watched.came:
                        await trio.sleep(AWAY_AFTER)
                    while relay.sink.number >= 0 or fifos.unread(out):
                        await settle()
                        with suppress(BlockingIOError):
                            received += os.read(out.number, PAGE)
                        await trio.sleep(0.01)
                await relay.stop()
            out.close()
        check(3 * PAGE, Watched.came.pop() + received)

    for _ in range(20):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.001))


class LateLoss(FirstBytes):
    """A store on a disk that responds too late with an error: the bytes of its write are
    lost.
    """

    def fill(self, pipe: Fd) -> int:
        self.lost = len(os.read(pipe.number, PAGE))
        raise OSError(errno.ETIMEDOUT, "the disk does not respond")

    @property
    def free(self) -> int:
        return PAGE


def test_bytes_that_a_disk_lost_after_its_time_limit_are_counted() -> None:
    @dataclass(frozen=True, slots=True)
    class Losing(Overflow):
        def open(self) -> Store:
            return LateLoss()

    async def main() -> None:
        with tempfile.TemporaryDirectory() as directory:
            source, process, sink, out = open_ends(f"{directory}/fifo")
            relay = OverflowPipeRelay(
                "stdout", source, sink, closes=(source, sink), overflow=Losing()
            )
            received = b""
            async with trio.open_nursery() as nursery:
                relay.start(nursery)
                os.write(process.number, DATA[: 3 * PAGE])
                await trio.sleep(2 * AWAY_AFTER)
                process.close()
                with trio.fail_after(10 * AWAY_AFTER):
                    while relay.sink.number >= 0 or fifos.unread(out):
                        with suppress(BlockingIOError):
                            received += os.read(out.number, PAGE)
                        await trio.sleep(0.01)
                await relay.stop()
            out.close()
        check(3 * PAGE, received)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.001))
