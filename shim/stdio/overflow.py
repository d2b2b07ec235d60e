"""The relays of the output policies ``spool`` and ``drop``: a process never waits for long.

While a client reads, it sets the pace, as with every other relay, and the bytes
go directly to the fifo.  A reader that has read nothing from a full fifo for a
second is away.  From then on the process does not wait: its output goes into a
store, and is dropped while the store is full.  When the reader reads again, it
gets all stored bytes in order.  Where bytes are missing it gets a line, the marker,
with their number.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import wait_readable, wait_writable

from shim import log
from shim.counters import COUNTERS
from shim.linux import fifos
from shim.linux.fifos import Fd
from shim.scope import background
from shim.stdio.copying import TerminalRelay
from shim.stdio.relay import LONG_PAUSE, Relay, splice
from shim.stdio.spool import SMALL, FirstBytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shim.stdio.spool import Overflow, Store

# Seconds after which a reader that reads nothing is away.
AWAY_AFTER = 1.0
# Bytes that a marker takes at most.
_MARKER = 128


def marker(dropped: int, last: bytes) -> bytes:
    """Return the line that replaces ``dropped`` bytes after the byte ``last``."""
    begin = b"" if last == b"\n" else b"\n"
    return begin + b"[trio-shim: %d bytes of output dropped]\n" % dropped


class _OverflowRelay(Relay):
    """The base class of both relays.  The sink is a fifo or pipe open at both ends.

    One task reads the source.  While there is a store, a second task writes the
    stored bytes to the sink.
    """

    def __init__(
        self, name: str, source: Fd, sink: Fd, *, closes: Sequence[Fd] = (), overflow: Overflow
    ) -> None:
        super().__init__(name, source, sink, closes=closes, linger=True)
        self._overflow = overflow
        self._store: Store | None = None
        self._dropped = 0  # bytes that the next marker reports
        self._away = False  # the reader has read nothing for AWAY_AFTER
        self._opened = trio.lowlevel.ParkingLot()
        self._warned = False

    @property
    def backlog(self) -> int:
        # A marker without stored bytes counts as one byte.
        held = max(1, self._store.used) if self._store is not None else 0
        return self._pending + held

    async def _pump(self) -> None:
        try:
            async with background(self._deliver):
                await self._read_all()
                self._end_source()
                while self._store is not None:
                    await self._progress.park()
        finally:
            self._close_store()

    async def _read_all(self) -> None:
        raise NotImplementedError

    async def _write(self, data: bytes | memoryview) -> None:
        """Write ``data`` to the sink, or store or drop it."""
        rest = memoryview(data)
        while rest:
            self._pending = len(rest)
            if self._store is not None:
                count = await self._store_or_drop(lambda store: store.put(rest), lambda: len(rest))  # noqa: B023 - called at once
                rest = rest[count or 0 :]
                continue
            try:
                count = os.write(self.sink.number, rest)
            except BlockingIOError:
                await self._wait_sink_writable()
                continue
            rest = rest[count:]
            self._pending = len(rest)
            self._advance(count)
        self._pending = 0

    async def _wait_sink_writable(self) -> None:
        """Wait until the sink is writable; after AWAY_AFTER seconds open a store instead."""
        with trio.move_on_after(AWAY_AFTER) as waiting:
            await wait_writable(self.sink.number)
        if waiting.cancelled_caught:
            self._away = True
            self._store = self._open_store()
            self._opened.unpark_all()

    async def _store_or_drop(
        self, take: Callable[[Store], int], drop: Callable[[], int]
    ) -> int | None:
        """Store or drop bytes; return how many, or None if the caller has to repeat the call.

        ``take`` and ``drop`` return the number of bytes, 0 at the end of the source.
        """
        store = self._store
        assert store is not None
        self._count_lost(store)
        if store.free and not self._dropped:
            try:
                count = take(store)
                COUNTERS.spooled += count
                return count  # noqa: TRY300 - the branches are the errors
            except BlockingIOError:
                return None
            except OSError as exc:
                self._warn(exc)
                self._stop_storing(store)
                return None
        if not self._away:
            await self._wait_progress()
            return None
        if not self._dropped:
            log.warning("no client reads: output is being dropped", stream=self.name)
        count = drop()
        self._lose(count)
        return count

    def _lose(self, count: int) -> None:
        self._dropped += count
        COUNTERS.dropped += count

    async def _wait_progress(self) -> None:
        with trio.move_on_after(AWAY_AFTER) as waiting:
            await self._progress.park()
        self._away = waiting.cancelled_caught

    async def _deliver(self) -> None:
        while True:
            if self._store is None:
                await self._opened.park()
                continue
            await wait_writable(self.sink.number)
            if self._store.stuck:
                await trio.sleep(LONG_PAUSE)  # no event reports that a disk responds again
                continue
            with suppress(BlockingIOError):
                self._write_oldest(self._store)

    def _write_oldest(self, store: Store) -> None:
        """Write the oldest stored bytes, or the marker.  The sink was writable: a reader reads."""
        self._count_lost(store)
        count = 0
        try:
            if store.used:
                count = store.write_to(self.sink)
            elif self._dropped:
                count = self._write_marker(store, self.sink)
        except BlockingIOError:
            raise
        except OSError as exc:
            if store.stuck:
                return  # the bytes can be read once the disk responds
            self._give_up_stored(store, exc)
            return
        self._away = False
        self._store_late_marker(store)
        if not store.used and not self._dropped:
            self._close_store()
        self._advance(count)

    def _give_up_stored(self, store: Store, exc: OSError) -> None:
        log.error("cannot read the spool: its output is lost", stream=self.name, error=exc)
        self._lose(store.used)
        self._close_store()
        self._store = self._new_first_bytes()
        self._store.seal()

    def _count_lost(self, store: Store) -> None:
        if store.lost and not store.stuck:
            self._lose(store.lost)
            store.lost = 0

    def _write_marker(self, store: Store, sink: Fd) -> int:
        count = os.write(sink.number, marker(self._dropped, store.last))
        self._dropped = 0
        return count

    def _store_late_marker(self, store: Store) -> None:
        """Store the marker as soon as there is room for it: newer output may follow it."""
        if not (self._dropped and store.used and store.free >= _MARKER):
            return
        rest = marker(self._dropped, store.last)
        with suppress(OSError):  # the disk is full: written once the store is empty
            while rest:
                rest = rest[store.put(rest) :]
                self._dropped = 0

    def _open_store(self) -> Store:
        try:
            return self._overflow.open()
        except OSError as exc:
            self._warn(exc)
            return self._new_first_bytes()

    def _new_first_bytes(self) -> Store:
        return FirstBytes()

    def _stop_storing(self, store: Store) -> None:
        """After a write error: deliver the stored bytes, and drop new ones."""
        if store.used or store.stuck:
            store.seal()
            return
        self._count_lost(store)
        self._close_store()
        self._store = self._new_first_bytes()

    def _close_store(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def _warn(self, exc: OSError) -> None:
        if not self._warned:
            log.warning(
                "output cannot be spooled: unread output is dropped",
                stream=self.name,
                error=exc,
            )
        self._warned = True


class OverflowPipeRelay(_OverflowRelay):
    """Moves the bytes of a pipe to a fifo.

    Small writes are copied, so that a fifo without a reader is filled by bytes:
    a spliced write takes a whole page of the fifo, however small it is.
    """

    async def _read_all(self) -> None:
        source = self.source.number
        null = Fd(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
        try:
            while True:
                await wait_readable(source)
                if 0 < fifos.unread(self.source) <= SMALL:
                    await self._write(os.read(source, SMALL))
                elif not await self._move(null):
                    return
        finally:
            null.close()

    async def _move(self, null: Fd) -> bool:
        """Move the bytes of the source; return False at its end."""
        source = self.source
        try:
            if self._store is not None:
                count = await self._store_or_drop(
                    lambda store: store.fill(source), lambda: splice(source.number, null.number)
                )
                return count != 0
            count = splice(source.number, self.sink.number)
        except BlockingIOError:
            if self._store is None and fifos.unread(source):
                await self._wait_sink_writable()
            return not fifos.at_end(source)  # a full sink hides the end
        self._advance(count)
        return count != 0


class OverflowTerminalRelay(_OverflowRelay, TerminalRelay):
    """Copies from the master of a terminal to a fifo."""

    async def _read_all(self) -> None:
        await TerminalRelay._pump(self)
