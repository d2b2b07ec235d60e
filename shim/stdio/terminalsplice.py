"""Relays between a terminal and fifos that only splice, so that no byte is in this process.

So a kill of the daemon at any moment loses no byte and repeats none.
Output goes through a pipe, of which the keeper has a copy.

Source: copy_splice_read and iter_file_splice_write in Linux fs/splice.c; n_tty_write in
drivers/tty/n_tty.c: each consumes exactly the bytes that it returns.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from trio.lowlevel import wait_readable, wait_writable

from shim import log
from shim.linux import fifos
from shim.linux.fifos import Fd
from shim.stdio.copying import CopyRelay, TerminalRelay
from shim.stdio.relay import splice

# Bytes in one splice from a terminal, which returns no more; a larger number makes the
# kernel allocate pages that it does not use.
_PIECE = 1 << 12
# Bytes that are taken from a terminal before they are passed on.
_BATCH = 1 << 16
# Bytes in one read of dropped output.
_READ = 1 << 17


def open_buffer() -> Fd:
    """Return a new pipe, open at both ends."""
    reader, writer = (Fd(number) for number in os.pipe2(os.O_CLOEXEC))
    try:
        return fifos.reopen(writer, os.O_RDWR)
    finally:
        reader.close()
        writer.close()


class SpliceTerminalRelay(TerminalRelay):
    """Moves the output of a terminal to a pipe or fifo, through :attr:`pipe`."""

    # Open at both ends; set before start().
    pipe = Fd(-1)
    _splices = True

    def _make_room(self) -> None:
        pass

    async def _pump(self) -> None:
        if left := fifos.unread(self.pipe):  # by a daemon that was killed
            await self._pass_on(left)
        await super()._pump()

    def _take(self) -> tuple[int, int]:
        size = 0
        while size < _BATCH:
            try:
                count = self._splice() if self._splices else self._copy()
            except OSError as exc:
                if exc.errno == errno.EINVAL and self._splices:
                    self._splices = False
                    log.warning(
                        "this kernel cannot splice from a terminal: a kill of this shim may "
                        "lose output",
                        stream=self.name,
                    )
                    continue
                if exc.errno not in {errno.EAGAIN, errno.EIO}:
                    raise
                return size, exc.errno
            if not count:
                break
            size += count
        return size, 0

    def _splice(self) -> int:
        flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
        return os.splice(self.source.number, self.pipe.number, _PIECE, flags=flags)

    def _copy(self) -> int:
        # Into an empty buffer only: it holds sixteen pieces, however small.
        if fifos.unread(self.pipe):
            raise BlockingIOError(errno.EAGAIN, "the buffer is in use")
        return os.write(self.pipe.number, os.read(self.source.number, _PIECE))

    async def _pass_on(self, count: int) -> None:
        self._pending = count
        while self._pending:
            try:
                moved = splice(self.pipe.number, self.sink.number)
            except BlockingIOError:
                await wait_writable(self.sink.number)
                continue
            except OSError as exc:
                self._drop(exc)
                moved = len(os.read(self.pipe.number, _READ))
            self._pending -= moved
            self._advance(moved)


class _CannotSpliceError(Exception):
    """The kernel cannot splice to this terminal."""


class SpliceInputRelay(CopyRelay):
    """Moves bytes from a pipe or fifo to a terminal."""

    async def _pump(self) -> None:
        while True:
            await wait_readable(self.source.number)
            try:
                count = await self._repeat(self._splice)
            except _CannotSpliceError:
                log.warning(
                    "this kernel cannot splice to a terminal: a kill of this shim may lose input",
                    stream=self.name,
                )
                await super()._pump()
                return
            if count is None:
                with suppress(BlockingIOError):
                    self._advance(len(os.read(self.source.number, _READ)))
            elif count > 0:
                self._advance(count)
            elif not count:
                return

    def _splice(self) -> int:
        """Return the number of moved bytes: 0 at the source's end, -1 if it is empty.

        :raises BlockingIOError: the terminal takes none.
        :raises _CannotSpliceError: it takes them by write(2) only.
        """
        try:
            return splice(self.source.number, self.sink.number)
        except BlockingIOError:
            if fifos.unread(self.source):
                raise
            return 0 if fifos.at_end(self.source) else -1
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                raise _CannotSpliceError from None
            raise
