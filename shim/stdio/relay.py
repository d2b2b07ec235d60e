"""One direction of one stream: bytes from a source to a sink until the source ends.

Between pipes the bytes stay in the kernel (splice); ``copying`` has the relays
that read and write.  A relay sleeps unless there is something to move and room
for it, and never raises into the nursery it runs in.

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

# Seconds between two looks at what a reader has left.
_READ_INTERVAL = 0.002
# Seconds between two looks for whoever reads; the first of them, each further one doubles.
_FIRST_INTERVAL = 0.001
# Seconds between two tries at a terminal that was hung up.
SHORT_PAUSE = 0.05
LONG_PAUSE = 0.5


def splice(source: int, sink: int) -> int:
    """Move what is in a pipe to another without waiting; 0 is the end of the source.

    :raises BlockingIOError: one is empty, or the other is full.
    """
    return os.splice(source, sink, fifos.PIPE_SIZE, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK)


class Relay:
    """Moves what ``source`` gives into ``sink``.

    ``closes`` are the fds to close at the end of the source.  With ``linger``
    the sink is a fifo open at both ends: it then stays open until a reader has
    taken everything that is in it.  ``name`` is for the log.
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

    def start(self, nursery: trio.Nursery) -> None:
        """Begin, as a task of ``nursery``."""
        nursery.start_soon(self._run)
        self._running = True

    async def _run(self) -> None:
        try:
            with self._scope:
                await self._pump()
                self._end_source()
                if self._linger:
                    await self._keep_until_read()
        except OSError as exc:
            log.warning("stdio ended early", stream=self.name, error=exc)
        except Exception as exc:  # the nursery is the daemon's, and other containers' too
            log.crash("stdio relay failed", exc, stream=self.name)
        finally:
            self._end_source()
            if self.sink in self._closes:
                self.sink.close()
            self._ended.set()

    async def stop(self) -> None:
        """End now, whatever is left in the source; return once that is so."""
        self._scope.cancel()
        if self._running:
            await self._ended.wait()

    def check_reader(self) -> None:
        """Look for a reader now, and again soon: one may have come."""
        self._checks.unpark_all()

    async def wait_drained(self) -> None:
        """Wait until what is in the source now has reached the sink.

        A writer that goes on writing does not prolong this: nothing holds more
        than a pipe's size of bytes written earlier.
        """
        limit = self.moved + self.backlog + fifos.PIPE_SIZE
        while self.moved < limit and not self._is_drained():
            await self._progress.park()

    async def wait_read(self, idle: float) -> None:
        """Wait until what is in the source now has been read from the sink.

        Not for a reader that takes nothing for ``patience`` seconds, or when
        there is none, nor for what is no fifo.  As with :meth:`wait_drained`, a
        writer that goes on writing does not prolong this.
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
    def backlog(self) -> int:
        """How many bytes have left the source and not reached the sink."""
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
        """Keep the fifo's write end until a reader has taken everything.

        A reader can die with bytes unread, and its successor's open(2) waits
        for a writer: without one, that open never returns, and the bytes, which
        the kernel keeps, reach nobody.

        No event tells a writer that a reader came or read, so the relay looks,
        with pauses that double.  Where there is no reader, or one that takes
        nothing, these grow without a limit: :meth:`look` shortens them again,
        and so does a reader that takes something.
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
    """From a pipe or fifo to a pipe or fifo; nothing is ever held in between."""

    async def _pump(self) -> None:
        source, sink = self.source.number, self.sink.number
        while True:
            await wait_readable(source)
            try:
                count = splice(source, sink)
            except BlockingIOError:
                # Which of the two would block?  Waiting on the wrong one spins.
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
