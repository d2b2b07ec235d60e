"""Relays that read(2) and write(2), which is faster than splice(2) for terminals.

Source: pty(7); drivers/tty/n_tty.c for the effect of a hang-up.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import wait_readable, wait_writable

from shim import log
from shim.stdio.relay import LONG_PAUSE, SHORT_PAUSE, Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shim.linux.fifos import Fd

# Bytes in one read.
_READ = 1 << 17
# Bytes that are read from a terminal before they are written.
_TERMINAL = 1 << 16


class CopyRelay(Relay):
    """Copies from a pipe or fifo to any fd.

    With ``retry_hang_up`` a write that fails with EIO, as on a terminal that no
    process has open, is repeated until it succeeds.  Any other failure drops the
    bytes, so that no container blocks on a full disk.
    """

    def __init__(
        self,
        name: str,
        source: Fd,
        sink: Fd,
        *,
        closes: Sequence[Fd] = (),
        linger: bool = False,
        retry_hang_up: bool = False,
    ) -> None:
        super().__init__(name, source, sink, closes=closes, linger=linger)
        self._retry_hang_up = retry_hang_up
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
        while rest:
            count = await self._repeat(partial(os.write, self.sink.number, rest))
            if count is None:
                break
            rest = rest[count:]
            # Counted per write: wait_read detects a slow reader by this.
            self._pending = len(rest)
            self._advance(count)
        self._pending = 0
        self._advance(len(rest))  # dropped

    async def _repeat(self, write: Callable[[], int]) -> int | None:
        """Call ``write`` until the sink takes bytes; return their number.

        Return None after an error that another call would not change.
        """
        waited = False
        while True:
            try:
                return write()
            except BlockingIOError:
                # poll(2) reports a terminal that was hung up as writable.
                if waited:
                    await trio.sleep(SHORT_PAUSE)
                await wait_writable(self.sink.number)
                waited = True
            except OSError as exc:
                if not (self._retry_hang_up and exc.errno == errno.EIO):
                    self._drop(exc)
                    return None
                await trio.sleep(SHORT_PAUSE)

    def _drop(self, exc: OSError) -> None:
        if not self._failed:
            log.error("cannot write: output is being dropped", stream=self.name, error=exc)
        self._failed = True


class TerminalRelay(CopyRelay):
    """Copies from the master of a terminal to any fd.

    A hang-up does not end the relay, because another process may open the
    terminal again.  :meth:`finish` ends it.
    """

    _finishing = False
    _waiting: trio.CancelScope | None = None

    async def _run(self) -> None:
        self._make_room()
        await super()._run()

    def _make_room(self) -> None:
        # One buffer for all reads: a new one for each read costs page faults.
        self._buffer = memoryview(bytearray(_TERMINAL))

    def finish(self) -> None:
        """Copy the bytes that can be read now and end, though a process has the terminal open."""
        self._finishing = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def _pump(self) -> None:
        hung_up = False
        pause = SHORT_PAUSE
        while True:
            if not self._finishing:
                with trio.CancelScope() as self._waiting:
                    if hung_up:
                        await trio.sleep(pause)
                        pause = min(2 * pause, LONG_PAUSE)
                    else:
                        await wait_readable(self.source.number)
                self._waiting = None
            else:
                await trio.lowlevel.checkpoint()
            count, error = self._take()
            if count:
                hung_up, pause = False, SHORT_PAUSE
                await self._pass_on(count)
            elif self._finishing:
                return
            else:
                hung_up = error == errno.EIO

    def _take(self) -> tuple[int, int]:
        """Read the bytes that can be read now; return how many, and the errno after them or 0.

        At most a buffer's size is read.  A terminal returns at most 4 KiB a read;
        to wait for the event loop after each costs more than the copy.
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
        return size, error

    async def _pass_on(self, count: int) -> None:
        """Write the ``count`` bytes that were taken."""
        await self._write(self._buffer[:count])
