"""Relays for whom the process does not wait when nobody reads.

As long as somebody reads, the reader sets the pace, as it does for every other
relay, and the bytes go straight to the fifo.  A reader that has taken nothing
for a second although the fifo was full is away.  From then on the process is
never made to wait: what it writes goes into a store, and past its limit is
dropped.  When the reader takes something again it gets all that was stored, in
order, and a line that says how many bytes are missing where they are missing.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import wait_readable, wait_writable

from shim import log
from shim.linux import fifos
from shim.linux.fifos import Fd
from shim.scope import background
from shim.stdio.copying import TerminalRelay
from shim.stdio.relay import LONG_PAUSE, Relay, splice
from shim.stdio.spool import SMALL, FirstBytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shim.stdio.spool import Overflow, Store

# Seconds after which a reader that takes nothing is away.
AWAY_AFTER = 1.0
# Room for a marker, in bytes.
_MARKER = 128


def marker(dropped: int, last: bytes) -> bytes:
    """Return the line that stands for ``dropped`` bytes after a byte ``last``."""
    begin = b"" if last == b"\n" else b"\n"
    return begin + b"[trio-shim: %d bytes of output dropped]\n" % dropped


class _OverflowRelay(Relay):
    """What both have in common.  The sink is a fifo open at both ends.

    One task takes from the source; while there is a store a second one gives
    what is in it to the sink.
    """

    def __init__(
        self, name: str, source: Fd, sink: Fd, *, closes: Sequence[Fd] = (), overflow: Overflow
    ) -> None:
        super().__init__(name, source, sink, closes=closes, linger=True)
        self._overflow = overflow
        self._store: Store | None = None
        self._dropped = 0  # bytes the next marker is to tell of
        self._away = False  # who reads has taken nothing for a while
        self._opened = trio.lowlevel.ParkingLot()
        self._warned = False

    @property
    def backlog(self) -> int:
        # A marker alone counts as something too.
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
        """Pass on what was read, or keep it."""
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
        """Wait for room in the sink, and no longer than a reader may take for it."""
        with trio.move_on_after(AWAY_AFTER) as waiting:
            await wait_writable(self.sink.number)
        if waiting.cancelled_caught:
            self._away = True
            self._store = self._open_store()
            self._opened.unpark_all()

    async def _store_or_drop(
        self, take: Callable[[Store], int], drop: Callable[[], int]
    ) -> int | None:
        """Put something into the store, or drop it; None if it has to be tried again.

        ``take`` and ``drop`` say how many bytes it was, which is 0 at the end.
        """
        store = self._store
        assert store is not None
        self._count_lost(store)
        if store.free and not self._dropped:
            try:
                return take(store)
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
            log.warning("nobody reads: output is being dropped", stream=self.name)
        count = drop()
        self._dropped += count
        return count

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
                await trio.sleep(LONG_PAUSE)  # no event tells that a disk responds again
                continue
            with suppress(BlockingIOError):
                self._write_oldest(self._store)

    def _write_oldest(self, store: Store) -> None:
        """Write what is oldest.  There is a reader: it took something."""
        self._count_lost(store)
        count = 0
        try:
            if store.used:
                count = store.write_to(self.sink)
            elif self._dropped:
                count = self._write_marker(store)
        except BlockingIOError:
            raise
        except OSError as exc:
            if store.stuck:
                return  # it is there when the disk responds
            log.error("spooled output is lost", stream=self.name, error=exc)
            self._dropped += store.used
            self._close_store()
            self._store = FirstBytes()
            self._store.seal()
            return
        self._away = False
        if self._dropped and store.used and store.free >= _MARKER:
            self._store_marker(store)
        if not store.used and not self._dropped:
            self._close_store()
        self._advance(count)

    def _count_lost(self, store: Store) -> None:
        if store.lost and not store.stuck:
            self._dropped += store.lost
            store.lost = 0

    def _write_marker(self, store: Store) -> int:
        count = os.write(self.sink.number, marker(self._dropped, store.last))
        self._dropped = 0
        return count

    def _store_marker(self, store: Store) -> None:
        rest = marker(self._dropped, store.last)
        with suppress(OSError):  # no room on the disk: it is told when the store is empty
            while rest:
                rest = rest[store.put(rest) :]
                self._dropped = 0

    def _open_store(self) -> Store:
        try:
            return self._overflow.open()
        except OSError as exc:
            self._warn(exc)
            return FirstBytes()

    def _stop_storing(self, store: Store) -> None:
        """The disk takes no more: give what there is, drop what comes."""
        if store.used or store.stuck:
            store.seal()
            return
        self._close_store()
        self._store = FirstBytes()

    def _close_store(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def _warn(self, exc: OSError) -> None:
        if not self._warned:
            log.warning(
                "output cannot be spooled, what nobody reads is dropped",
                stream=self.name,
                error=exc,
            )
        self._warned = True


class OverflowPipeRelay(_OverflowRelay):
    """From a pipe to a fifo.

    What is small is copied, so that a fifo nobody reads holds as many lines as
    it has bytes: spliced, each would take a whole page of it.
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
        """Move what is in the source; say whether there may be more."""
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
            return not fifos.at_end(source)  # which a full sink hides
        self._advance(count)
        return count != 0


class OverflowTerminalRelay(_OverflowRelay, TerminalRelay):
    """From the master of a terminal to a fifo."""

    async def _read_all(self) -> None:
        await TerminalRelay._pump(self)
