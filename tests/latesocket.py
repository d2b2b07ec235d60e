"""A socket whose first answer is empty although a message is queued, as the kernel's can be."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


class LateSocket(socket.socket):
    """Its first answer is empty, and the next ones are the kernel's."""

    is_late = True  # the first answer is still to come

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        return b"" if self._is_first() else super().recv(bufsize, flags)

    def recvmsg(self, *args: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        return (b"", [], 0, None) if self._is_first() else super().recvmsg(*args)

    def _is_first(self) -> bool:
        is_late, self.is_late = self.is_late, False
        return is_late


def late_pair() -> tuple[LateSocket, socket.socket]:
    """Return the late end of a pair, and the other one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return late(ours), theirs


def late(sock: socket.socket) -> LateSocket:
    """Make a late socket of ``sock``, which keeps its number."""
    made = LateSocket(fileno=sock.detach())
    made.setblocking(False)
    return made
