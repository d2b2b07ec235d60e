"""The connection of a new daemon to the process that waits for its answer."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from shim.linux.fdpassing import receive
from shim.recovery.inherited import CALLER
from shim.start import launcher
from shim.text import printable

if TYPE_CHECKING:
    from shim.recovery.deposit import Deposit


@dataclass(frozen=True, slots=True)
class Caller:
    """The process that waits for the answer of a ``start``.

    The daemon sends one packet, the answer, on ``connection``.  If the connection ends
    without it, there is no daemon.  ``manager`` is the pid of the process that ran
    ``start``.
    """

    connection: socket.socket
    manager: int

    def answer(self, data: bytes) -> None:
        """Send ``data``, which the caller prints to its standard output.

        :raises OSError: the caller has closed the connection.
        """
        self.connection.send(launcher.encode_answer(0, data))

    def refuse(self, text: str) -> None:
        """Send the error ``text``, which the caller prints to standard error as one line.

        :raises OSError: the caller has closed the connection.
        """
        self.connection.send(launcher.encode_answer(1, errors=printable(text).encode() + b"\n"))

    async def wait_received(self, task_status: trio.TaskStatus[None], deposit: Deposit) -> bool:
        """Report the answer as sent; return whether the caller has received it.

        A daemon that is killed meanwhile leaves that to its replacement, which inherits the
        connection from ``deposit``.
        """
        task_status.started()
        with self.connection:
            try:
                received = await self._acknowledged()
            except BaseException:
                deposit.leave(CALLER)
                raise
            deposit.drop(CALLER)
            return received

    async def wait_acknowledged(self) -> bool:
        """Wait for the caller's ``told``; return False if the connection ended without it.

        The caller sends it when it has printed the answer.
        """
        with self.connection:
            return await self._acknowledged()

    async def _acknowledged(self) -> bool:
        self.connection.setblocking(False)
        await trio.lowlevel.wait_readable(self.connection)
        # A caller that ends before it has read the server's packet ``child`` resets the
        # connection.  The kernel reports that once, and first: then come its packets.
        for _ in range(2):
            with suppress(OSError):
                # It stays, for a replacement of this daemon.
                return receive(self.connection, 16, socket.MSG_PEEK) == b"told"
        return False
