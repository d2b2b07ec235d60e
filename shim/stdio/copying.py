"""Relays that read and write: to and from terminals.

Source: pty(7); drivers/tty/n_tty.c for what a hang-up does.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import wait_readable, wait_writable

from shim import log
from shim.stdio.relay import LONG_PAUSE, SHORT_PAUSE, Relay

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shim.linux.fifos import Fd

# Bytes in one read.
_READ = 1 << 17
_TERMINAL = 1 << 16  # from a terminal, before they are passed on


class CopyRelay(Relay):
    """From a pipe or fifo to anything.

    With ``retry_hang_up`` a failing sink is tried again for ever; without it, what
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
        waited = False
        while rest:
            try:
                count = os.write(self.sink.number, rest)
            except BlockingIOError:
                # A terminal that was hung up claims to have room.
                if waited:
                    await trio.sleep(SHORT_PAUSE)
                await wait_writable(self.sink.number)
                waited = True
                continue
            except OSError as exc:
                if self._retry_hang_up and exc.errno == errno.EIO:
                    await trio.sleep(SHORT_PAUSE)
                    continue
                self._drop(exc)
                break
            rest = rest[count:]
            waited = False
            # At once: wait_read sees by this that a slow reader takes something.
            self._pending = len(rest)
            self._advance(count)
        self._pending = 0
        self._advance(len(rest))  # dropped

    def _drop(self, exc: OSError) -> None:
        if not self._failed:
            log.error("output is being dropped", stream=self.name, error=exc)
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
            data, error = self._read_some()
            if data:
                hung_up, pause = False, SHORT_PAUSE
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
