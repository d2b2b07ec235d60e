"""The relays of ``spool`` and ``drop`` in a daemon that may be killed and replaced.

No byte is in this process only.  Bytes between two pipes, or a terminal and a pipe, are
spliced.  Bytes to be stored go through the pipe ``intake``, and stored bytes leave through the
pipe ``outlet``.  A record in a memfd counts the bytes in both pipes that the store has, too; a
replacement discards these from the pipes.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import wait_readable

from shim import log
from shim.linux import fifos, libc
from shim.linux.fifos import Fd
from shim.recovery.slot import StateSlot
from shim.stdio.overflow import _OverflowRelay
from shim.stdio.relay import LONG_PAUSE, splice
from shim.stdio.spool import FirstBytesInFile, Ring, Store, restore_ring
from shim.stdio.terminalsplice import SpliceTerminalRelay, open_buffer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shim.stdio.kept import Kept
    from shim.stdio.spool import Overflow

# Bytes that are stored at once, at most: a pipe that was not made larger holds them.
_MOST = 1 << 16
_ROLES = ("intake", "outlet", "record")


class Stages:
    """The pipes and the record of one relay, which the keeper has, too."""

    def __init__(self, kept: Kept, name: str, intake: Fd, outlet: Fd, record: Fd) -> None:
        self.kept = kept
        self.name = name
        self.intake = intake
        self.outlet = outlet
        self.record = StateSlot(record.number)
        self.fds = (intake, outlet, record)

    @classmethod
    def open(cls, kept: Kept, name: str) -> Stages:
        """Return new ones, kept.

        :raises OSError: no fd is left.
        """
        fds: list[Fd] = []
        with ExitStack() as unless_opened:
            for open_one in (open_buffer, open_buffer, _open_record):
                fds.append(open_one())
                unless_opened.callback(fds[-1].close)
            unless_opened.pop_all()
        kept.hold({f"{name}-{role}": fd for role, fd in zip(_ROLES, fds, strict=True)})
        return cls(kept, name, *fds)

    @classmethod
    def take(cls, kept: Kept, name: str) -> Stages | None:
        """Return those of a daemon that was killed; None if the relay has ended."""
        found = [kept.take(f"{name}-{role}") for role in _ROLES]
        fds = [fd for fd in found if fd is not None]
        if len(fds) == len(found):
            return cls(kept, name, *fds)
        for fd in fds:
            fd.close()
        return None

    @property
    def file_role(self) -> str:
        return f"{self.name}-spool"


class _KeptOverflowRelay(_OverflowRelay):
    """The base class of both relays."""

    def __init__(
        self,
        name: str,
        source: Fd,
        sink: Fd,
        stages: Stages,
        *,
        closes: Sequence[Fd] = (),
        overflow: Overflow,
    ) -> None:
        super().__init__(name, source, sink, closes=closes, overflow=overflow)
        self._stages = stages
        self._intake = stages.intake
        self._outlet = stages.outlet
        self._recorded = b""
        self._rest: int | None = None  # bytes of the intake that are not stored
        self._waits = False  # output has waited for a free fd
        self._restore()

    @property
    def backlog(self) -> int:
        if self._intake.number < 0:
            return super().backlog
        return super().backlog + fifos.unread(self._intake) + fifos.unread(self._outlet)

    def _restore(self) -> None:
        """Go on from the record of a daemon that was killed."""
        self._recorded = self._stages.record.read()
        if not self._recorded:
            return
        record = json.loads(self._recorded)
        self._dropped, self._away = record["dropped"], record["away"]
        if record["giving"]:
            _discard(self._outlet, 0)
        if record["rest"] is not None:
            _discard(self._intake, record["rest"])
        if (stored := record["store"]) is None:
            return
        file = self._stages.kept.take(self._stages.file_role)
        if file is None:
            self._lose(stored["used"])
            self._store = self._new_first_bytes()
            self._store.seal()
            return
        self._store = restore_ring(file, **stored)

    def _save(self, *, giving: bool = False) -> None:
        """Write the record.  With ``giving`` the outlet has bytes that are stored, too."""
        store = self._store.position if isinstance(self._store, Ring) else None
        record: dict[str, Any] = {
            "dropped": self._dropped,
            "away": self._away,
            "giving": giving,
            "rest": self._rest,
            "store": store,
        }
        recorded = json.dumps(record).encode()
        if recorded != self._recorded:
            self._stages.record.write(recorded)
            self._recorded = recorded

    async def _pass_intake(self) -> None:
        """Pass on bytes of the intake."""
        if self._store is None:
            try:
                self._advance(splice(self._intake.number, self.sink.number))
            except BlockingIOError:
                await self._wait_sink_writable()
            return
        try:
            data = _peek(self._intake, _MOST)
        except OSError as exc:
            self._warn_no_room(exc)
            await trio.sleep(LONG_PAUSE)  # no event reports a free fd
            return
        count = await self._store_or_drop(lambda store: store.put(data), lambda: len(data))
        if count:
            self._rest = fifos.unread(self._intake) - count
            self._save()
            _discard(self._intake, self._rest)

    def _warn_no_room(self, exc: OSError) -> None:
        if not self._waits:
            log.warning(
                "output waits: the shim has no free file; raise the manager's limit of open files",
                stream=self.name,
                error=exc,
            )
        self._waits = True

    async def _empty_intake(self) -> None:
        while fifos.unread(self._intake):
            await self._pass_intake()
        self._rest = None
        self._save()

    def _write_oldest(self, store: Store) -> None:
        if fifos.unread(self._outlet):
            self._advance(splice(self._outlet.number, self.sink.number))
            self._away = False
            return
        if not store.used and not self._dropped:
            self._close_store()
            self._advance(0)
            return
        self._save(giving=True)
        try:
            if store.used:
                store.write_to(self._outlet)
            else:
                self._write_marker(store, self._outlet)
        except OSError as exc:
            if not store.stuck:
                self._give_up_stored(store, exc)
        else:
            self._store_late_marker(store)
        self._save()

    def _open_store(self) -> Store:
        if not self._overflow.directories:
            return self._new_first_bytes()
        store = super()._open_store()
        self._keep_store(store)
        return store

    def _new_first_bytes(self) -> Store:
        try:
            store = FirstBytesInFile.new()
        except OSError:  # no fd is free: these bytes are lost with this daemon
            return super()._new_first_bytes()
        self._keep_store(store)
        return store

    def _keep_store(self, store: Store) -> None:
        if isinstance(store, Ring):
            self._stages.kept.hold({self._stages.file_role: store.file})

    def _close_store(self) -> None:
        store, self._store = self._store, None
        self._save()
        if store is not None:
            store.close()

    async def _run(self) -> None:
        try:
            await super()._run()
        finally:
            for fd in self._stages.fds:
                fd.close()


class KeptOverflowPipeRelay(_KeptOverflowRelay):
    """Moves the bytes of a pipe to a fifo."""

    async def _read_all(self) -> None:
        source = self.source.number
        while True:
            await self._empty_intake()
            if source < 0:
                return
            await wait_readable(source)
            try:
                if self._store is not None:
                    count = splice(source, self._intake.number)
                else:
                    count = splice(source, self.sink.number)
                    self._advance(count)
            except BlockingIOError:
                if fifos.unread(self.source):
                    if self._store is None:
                        await self._wait_sink_writable()
                elif fifos.at_end(self.source):
                    return  # a full sink hides the end
                continue
            if not count:
                return


class KeptOverflowTerminalRelay(_KeptOverflowRelay, SpliceTerminalRelay):
    """Moves the output of a terminal to a fifo."""

    async def _read_all(self) -> None:
        self.pipe = self._intake
        await self._empty_intake()
        if self.source.number >= 0:
            await SpliceTerminalRelay._pump(self)

    async def _pass_on(self, count: int) -> None:
        await self._empty_intake()


def _open_record() -> Fd:
    return Fd(os.memfd_create(StateSlot.NAME, os.MFD_CLOEXEC))


def _peek(pipe: Fd, count: int) -> bytes:
    """Return the first bytes of a pipe that is not empty, and leave them in it.

    :raises OSError: no fd is free.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.read(reader, libc.tee(pipe.number, writer, count))
    finally:
        os.close(reader)
        os.close(writer)


def _discard(pipe: Fd, rest: int) -> None:
    """Remove the first bytes of a pipe, until ``rest`` bytes are left."""
    while (count := fifos.unread(pipe) - rest) > 0:
        os.read(pipe.number, count)
