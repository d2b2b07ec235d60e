"""Keeps copies of a daemon's ttrpc connections, and of their calls, in the fork server.

:mod:`shim.ttrpc.kept` defines the interface, ``ConnectionStore``, and the contents of a record.
The fd ``conn/N`` is a connection.  ``calls/N`` is a file in memory: it begins with the state
slot of the running calls, and the :class:`~shim.recovery.transfers.Transfers` follow it once
bytes are counted.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import trio

from shim import log
from shim.errors import InvalidError
from shim.linux.sockets import accept_of
from shim.recovery.slot import StateSlot
from shim.recovery.transfers import Transfers
from shim.ttrpc.frames import LONGEST
from shim.ttrpc.kept import Resumed

if TYPE_CHECKING:
    from shim.recovery.deposit import Deposit
    from shim.recovery.inherited import Inherited

# Where the transfers begin: after the two slots of the state.
_TRANSFERS = 1 << 29


class Connections:
    """The connections of a daemon.  With an inactive ``deposit`` none is kept."""

    def __init__(self, deposit: Deposit) -> None:
        self._deposit = deposit
        self._next = 0

    def accept(self, listener: socket.socket) -> tuple[int, ConnectionRecord | None]:
        """Accept a connection, and send the keeper copies of it and of its new record."""
        slot = None
        if self._deposit.is_active:
            try:
                slot = StateSlot.new()
            except OSError as exc:
                log.warning("a connection will end with this shim: it has no record", error=exc)
        if slot is None:
            return accept_of(listener)()[0], None
        names = (f"conn/{self._next}", f"calls/{self._next}")
        try:
            fd = self._deposit.put_accepted(listener, names, slot.fd)
        except BaseException:
            slot.close()
            raise
        self._next += 1
        return fd, ConnectionRecord(fd, slot, self._deposit, names)

    def resume(self, inherited: Inherited) -> list[Resumed]:
        """Return the connections of the daemon that was killed."""
        fds, slots = inherited.take_all("conn/"), inherited.take_all("calls/")
        numbers = sorted({int(number) for number in (*fds, *slots)})
        self._next = numbers[-1] + 1 if numbers else 0
        resumed = []
        for number in numbers:
            names = (f"conn/{number}", f"calls/{number}")
            fd, slot = fds.get(str(number), -1), slots.get(str(number), -1)
            try:
                resumed.append(self._resume(fd, slot, names))
            except (OSError, InvalidError) as exc:
                log.warning("a connection is closed: cannot go on with it", error=exc)
                self._deposit.drop(*names)
        return resumed

    def _resume(self, fd: int, slot: int, names: tuple[str, ...]) -> Resumed:
        """Return a connection; close its fds if there is an error.

        :raises InvalidError: the fd of the connection, or of its record, is missing.
        :raises OSError: no memory is left.
        """
        opened = [one for one in (fd, slot) if one >= 0]
        try:
            if len(opened) < len(names):
                raise InvalidError(f"one of {names} is missing")  # noqa: TRY301 - the except closes
            record = ConnectionRecord(fd, StateSlot(slot), self._deposit, names)
            sock = socket.socket(fileno=fd)
        except BaseException:
            for one in opened:
                os.close(one)
            raise
        self._deposit.use_own(dict(zip(names, opened, strict=True)))
        return Resumed(trio.SocketStream(trio.socket.from_stdlib_socket(sock)), record)


class ConnectionRecord:
    """The record of the connection ``fd``; see :class:`~shim.ttrpc.kept.Record`."""

    def __init__(self, fd: int, slot: StateSlot, deposit: Deposit, names: tuple[str, ...]) -> None:
        self._fd = fd
        self._slot = slot
        self._deposit = deposit
        self._names = names
        self._transfers: Transfers | None = None
        self._given_up = False
        if os.fstat(slot.fd).st_size > _TRANSFERS:
            self._mapped()

    @property
    def sent(self) -> int:
        return self._transfers.sent if self._transfers is not None else 0

    @property
    def unhandled(self) -> tuple[bytes, int]:
        return self._transfers.unhandled if self._transfers is not None else (b"", 0)

    def receive(self) -> bytes:
        return self._mapped().receive(self._fd)

    def advance(self, unhandled: int, discard: int) -> None:
        self._mapped().advance(unhandled, discard)

    def send(self, data: bytes, offset: int) -> int:
        return self._mapped().send(self._fd, data, offset)

    def save(self, state: bytes) -> None:
        if self._given_up:
            return
        try:
            self._slot.write(state)
        except OSError as exc:
            log.warning("a connection will end with this shim: cannot save its calls", error=exc)
            self._given_up = True
            self._deposit.drop(*self._names)

    def load(self) -> bytes:
        return self._slot.read()

    def leave(self) -> None:
        if self._slot.fd < 0:
            return
        self._deposit.leave(*self._names)
        self._slot.close()
        if self._transfers is not None:
            self._transfers.close()

    def close(self) -> None:
        if self._slot.fd < 0:
            return
        self._deposit.drop(*self._names)
        self.leave()

    def _mapped(self) -> Transfers:
        if self._transfers is None:
            self._transfers = Transfers(self._slot.fd, _TRANSFERS, LONGEST)
        return self._transfers
