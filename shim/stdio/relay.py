"""One direction of one stream: bytes from a source to a sink until the source ends.

Between pipes the bytes stay in the kernel (splice); ``copying`` has the relays
that read and write.  A relay sleeps while its source is empty or its sink full,
and never raises into the nursery it runs in.

Source: splice(2), fifo(7).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import wait_readable, wait_writable

from shim import log
from shim.linux import fifos

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shim.linux.fifos import Fd

# Seconds between two checks of how many bytes a reader has not read.
_READ_INTERVAL = 0.002
# Seconds between the first two checks for a reader; each further pause is doubled.
_FIRST_INTERVAL = 0.001
# Seconds between two attempts to use a terminal that was hung up: the first and the longest.
SHORT_PAUSE = 0.05
LONG_PAUSE = 0.5


def splice(source: int, sink: int) -> int:
    """Move bytes between two pipes without waiting; return how many, 0 at the source's end.

    :raises BlockingIOError: the source is empty, or the sink is full.
    """
    return os.splice(source, sink, fifos.PIPE_SIZE, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK)


class Relay:
    """Moves the bytes of ``source`` into ``sink``.

    A ``source`` that is closed has ended in a daemon that this one replaces.
    ``closes`` are the fds to close at the end of the source.  With ``linger``
    the sink is a fifo open at both ends: it then stays open until a reader has
    read every byte in it.  ``name`` is for the log.
    """

    def __init__(
        self, name: str, source: Fd, sink: Fd, *, closes: Sequence[Fd] = (), linger: bool = False
    ) -> None:
        self.name = name
        self.source = source
        self.sink = sink
        self.moved = 0  # bytes
        self.source_done = trio.Event()
        self._closes = closes
        self._linger = linger
        self._pending = 0  # bytes read and not yet written
        self._progress = trio.lowlevel.ParkingLot()
        self._scope = trio.CancelScope()
        self._running = False
        self._ended = trio.Event()
        self._checks = trio.lowlevel.ParkingLot()
        if source.number < 0:
            self.source_done.set()

    def resume(self) -> None:
        """Count the bytes that a replaced daemon has written and no reader has read.

        Call it before :meth:`start`.
        """
        if self._linger:
            self.moved = fifos.unread(self.sink)

    def start(self, nursery: trio.Nursery) -> None:
        """Run the relay as a task of ``nursery``."""
        nursery.start_soon(self._run)
        self._running = True

    async def _run(self) -> None:
        try:
            with self._scope:
                if self.source.number >= 0 or self.backlog:
                    await self._pump()
                self._end_source()
                if self._linger:
                    await self._keep_until_read()
        except OSError as exc:
            log.warning("cannot relay stdio: the stream ended early", stream=self.name, error=exc)
        except Exception as exc:  # an error would end the relays of all containers
            log.crash("stdio relay failed", exc, stream=self.name)
        finally:
            self._end_source()
            if self.sink in self._closes:
                self.sink.close()
            self._ended.set()

    async def stop(self) -> None:
        """End the relay though bytes are left in the source; return once it has ended."""
        self._scope.cancel()
        if self._running:
            await self._ended.wait()

    def check_reader(self) -> None:
        """Check for a reader now, and again after the shortest pause."""
        self._checks.unpark_all()

    async def wait_drained(self) -> None:
        """Wait until the bytes that are in the source now have reached the sink.

        A process that continues to write does not prolong this: the source holds
        at most a pipe's size of bytes that were written before the call.
        """
        limit = self.moved + self.backlog + fifos.PIPE_SIZE
        while self.moved < limit and not self._is_drained():
            await self._progress.park()

    async def wait_read(self, idle: float) -> None:
        """Wait until the bytes that are in the source now have been read from the sink.

        Returns earlier when no byte is read for ``idle`` seconds, and at once when
        the sink is not a fifo.  As with :meth:`wait_drained`, a process that
        continues to write does not prolong this.
        """
        limit = self.moved + self.backlog + fifos.PIPE_SIZE
        before, since = -1, trio.current_time()
        while self._linger and self.sink.number >= 0:
            left = fifos.unread(self.sink)
            taken = self.moved - left
            if taken >= limit or (not left and self._is_drained()):
                return
            if taken != before:
                before, since = taken, trio.current_time()
            elif trio.current_time() >= since + idle:
                return
            await trio.sleep(_READ_INTERVAL)

    @property
    def is_over(self) -> bool:
        """Whether the relay has ended: its sink needs it no more."""
        return self._ended.is_set()

    @property
    def backlog(self) -> int:
        """The number of bytes that have left the source and not reached the sink."""
        return self._pending

    def _is_drained(self) -> bool:
        return not self.backlog and (self.source_done.is_set() or not fifos.has_input(self.source))

    async def _pump(self) -> None:
        raise NotImplementedError

    def _advance(self, count: int) -> None:
        self.moved += count
        self._progress.unpark_all()

    def _end_source(self) -> None:
        self._pending = 0
        self.source_done.set()
        if self.source in self._closes:
            self.source.close()
        self._progress.unpark_all()

    async def _keep_until_read(self) -> None:
        """Keep the fifo's write end open until a reader has read every byte.

        A reader can die with bytes unread, and the open(2) of the next reader waits
        for a writer.  Without this write end that open never returns, and the
        bytes, which the kernel keeps, are never read.

        The kernel does not notify a writer that a reader opened the fifo or read,
        so the relay checks with pauses that double.  Without a reader, or with one
        that reads nothing, the pauses grow without a limit; :meth:`check_reader`
        and every read shorten them again.
        """
        fifos.close_reader(self.sink)
        left, pause = 0, _FIRST_INTERVAL
        while (now := fifos.unread(self.sink)) or not fifos.has_reader(self.sink):
            if now != left:
                left, pause = now, _FIRST_INTERVAL
            with trio.move_on_after(pause) as waiting:
                await self._checks.park()
            pause = 2 * pause if waiting.cancelled_caught else _FIRST_INTERVAL


class SpliceRelay(Relay):
    """Splices from a pipe or fifo to a pipe or fifo; holds no bytes in between."""

    async def _pump(self) -> None:
        source, sink = self.source.number, self.sink.number
        while True:
            await wait_readable(source)
            try:
                count = splice(source, sink)
            except BlockingIOError:
                # Either the source is empty or the sink is full.  To wait for the
                # wrong one is a busy loop.
                if fifos.unread(self.source):
                    await wait_writable(sink)
                elif fifos.at_end(self.source):
                    return  # a full sink hides the end
                continue
            except BrokenPipeError:
                return  # the process closed its stdin
            if not count:
                return
            self._advance(count)
