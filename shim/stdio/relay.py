"""One direction of one stream: bytes from a source to a sink until the source ends.

Between pipes the bytes stay in the kernel (splice); to a file, and to and from
a terminal, they are read and written.  A relay sleeps unless there is something
to move and room for it, and never raises into the nursery it runs in.

Source: splice(2), pty(7), fifo(7); drivers/tty/n_tty.c for what a hang-up does.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import wait_readable, wait_writable

from shim import log
from shim.linux import fifos

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shim.linux.fifos import Fd

# Bytes in one splice, and in one read.
_SPLICE = fifos.PIPE_SIZE
_READ = 1 << 17
_TERMINAL = 1 << 16  # bytes read from a terminal before they are passed on

# Seconds between two looks at what a reader has left.
_GLANCE = 0.002
# Seconds between two looks at a terminal that was hung up, or for a reader.
_SHORT_PAUSE = 0.05
_LONG_PAUSE = 0.5


class Relay:
    """Moves what ``source`` gives into ``sink``.

    ``closes`` are the fds to close at the end of the source.  With ``linger``
    the sink is a fifo open at both ends: it then stays open until somebody has
    come to read what is in it.  ``name`` is for the log.
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
        self._rest: Fd | None = None  # to see what is left in the sink, once it is closed

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
                    await self._wait_reader()
        except OSError as exc:
            log.warning("stdio ended early", stream=self.name, error=str(exc))
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
        if self._rest is not None:
            self._rest.close()

    async def wait_drained(self) -> None:
        """Wait until what is in the source now has reached the sink.

        A writer that goes on writing does not prolong this: nothing holds more
        than a pipe's size of bytes written earlier.
        """
        limit = self.moved + self._pending + fifos.PIPE_SIZE
        while self.moved < limit and not self._is_drained():
            await self._progress.park()

    async def wait_taken(self, patience: float) -> None:
        """Wait until what is in the source now has been read from the sink.

        Not for a reader that takes nothing for ``patience`` seconds, or when
        there is none, nor for what is no fifo.  As with :meth:`wait_drained`, a
        writer that goes on writing does not prolong this.
        """
        limit = self.moved + self._pending + fifos.PIPE_SIZE
        before, since = -1, trio.current_time()
        while self._linger and (fd := self._rest or self.sink).number >= 0:
            left = fifos.unread(fd)
            taken = self.moved - left
            if taken >= limit or (not left and self._is_drained()):
                if self._rest is not None:
                    self._rest.close()  # an exec may never be deleted
                return
            if taken != before:
                before, since = taken, trio.current_time()
            elif trio.current_time() >= since + patience:
                return
            await trio.sleep(_GLANCE)

    def _is_drained(self) -> bool:
        return self.source_done.is_set() or not (self._pending or fifos.has_input(self.source))

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

    async def _wait_reader(self) -> None:
        # While the fifo is open at both ends by us we cannot see whether anybody
        # else reads.  If nobody does, closing it would discard what is in it.
        writer = fifos.reopen_writer(self.sink)
        try:
            self.sink.close()
            pause = _SHORT_PAUSE
            while not fifos.has_reader(writer):
                await trio.sleep(pause)  # no event tells a writer that a reader came
                pause = min(2 * pause, _LONG_PAUSE)
            if fifos.unread(writer):
                self._rest = fifos.reopen_reader(writer)
        finally:
            writer.close()


class SpliceRelay(Relay):
    """From a pipe or fifo to a pipe or fifo; nothing is ever held in between."""

    async def _pump(self) -> None:
        source, sink = self.source.number, self.sink.number
        while True:
            await wait_readable(source)
            try:
                count = os.splice(
                    source, sink, _SPLICE, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
                )
            except BlockingIOError:
                # Which of the two would block?  Waiting on the wrong one spins.
                if fifos.unread(self.source):
                    await wait_writable(sink)
                continue
            except BrokenPipeError:
                return  # the process closed its stdin
            if not count:
                return
            self._advance(count)


class CopyRelay(Relay):
    """From a pipe or fifo to anything.

    With ``insist`` a failing sink is tried again for ever; without it, what
    does not fit is dropped, so that no container blocks on a full disk.
    """

    def __init__(
        self,
        name: str,
        source: Fd,
        sink: Fd,
        *,
        closes: Sequence[Fd] = (),
        linger: bool = False,
        insist: bool = False,
    ) -> None:
        super().__init__(name, source, sink, closes=closes, linger=linger)
        self._insist = insist
        self._failed = False

    async def _pump(self) -> None:
        while True:
            await wait_readable(self.source.number)
            try:
                data = os.read(self.source.number, _READ)
            except BlockingIOError:
                continue
            if not data:
                return
            await self._write(data)

    async def _write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        self._pending = len(rest)
        waited = False
        while rest:
            try:
                count = os.write(self.sink.number, rest)
            except BlockingIOError:
                # A terminal that was hung up claims to have room.
                if waited:
                    await trio.sleep(_SHORT_PAUSE)
                await wait_writable(self.sink.number)
                waited = True
                continue
            except OSError as exc:
                if self._insist and exc.errno == errno.EIO:
                    await trio.sleep(_SHORT_PAUSE)
                    continue
                self._drop(exc)
                break
            rest = rest[count:]
            waited = False
            # At once: wait_taken sees by this that a slow reader takes something.
            self._pending = len(rest)
            self._advance(count)
        self._pending = 0
        self._advance(len(rest))  # dropped

    def _drop(self, exc: OSError) -> None:
        if not self._failed:
            log.error("output is being dropped", stream=self.name, error=str(exc))
        self._failed = True


class TerminalRelay(CopyRelay):
    """From the master of a terminal to anything.

    A hang-up is not the end: another process may open the terminal again.
    :meth:`finish` says when it is.
    """

    _finishing = False
    _waiting: trio.CancelScope | None = None

    async def _run(self) -> None:
        # One for all reads: a fresh one each would be as many page faults.
        self._buffer = memoryview(bytearray(_TERMINAL))
        await super()._run()

    def finish(self) -> None:
        """Take what is there to read, and then end, whoever still has the terminal open."""
        self._finishing = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def _pump(self) -> None:
        hung_up = False
        pause = _SHORT_PAUSE
        while True:
            if not self._finishing:
                with trio.CancelScope() as self._waiting:
                    if hung_up:
                        await trio.sleep(pause)
                        pause = min(2 * pause, _LONG_PAUSE)
                    else:
                        await wait_readable(self.source.number)
                self._waiting = None
            else:
                await trio.lowlevel.checkpoint()
            data, error = self._read_some()
            if data:
                hung_up, pause = False, _SHORT_PAUSE
                await self._write(data)
            elif self._finishing:
                return
            else:
                hung_up = error == errno.EIO

    def _read_some(self) -> tuple[memoryview, int]:
        """Read what is there, up to the buffer's size; say why there is no more.

        A terminal gives 4 KiB at a time at the most, and sleeping after each of
        them costs more than the bytes do.
        """
        size = 0
        error = 0
        while size < len(self._buffer):
            try:
                size += os.readv(self.source.number, [self._buffer[size:]])
            except OSError as exc:
                if exc.errno not in {errno.EAGAIN, errno.EIO}:
                    raise
                error = exc.errno
                break
        return self._buffer[:size], error
