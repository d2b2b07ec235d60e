"""The process that waits for the outcome of a ``start``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from shim.start import launcher
from shim.text import printable

if TYPE_CHECKING:
    import socket


@dataclass(frozen=True, slots=True)
class Caller:
    """The process that waits for the outcome of a ``start``.

    ``connection`` takes one packet, the answer; its end without one means that
    there is no daemon.  ``manager`` is the pid of the process that ran ``start``.
    """

    connection: socket.socket
    manager: int

    def answer(self, data: bytes) -> None:
        """Send what the caller is to print.

        :raises OSError: the caller has given up.
        """
        self.connection.send(launcher.encode_answer(0, data))

    def refuse(self, text: str) -> None:
        """Say why there is no daemon, in one line."""
        self.connection.send(launcher.encode_answer(1, errors=printable(text).encode() + b"\n"))

    async def wait_acknowledged(self) -> bool:
        """Wait until the caller has printed the answer; say whether it has."""
        with self.connection:
            self.connection.setblocking(False)
            await trio.lowlevel.wait_readable(self.connection)
            try:
                return self.connection.recv(16) == b"told"
            except OSError:
                return False
