"""The listening socket of a fork server: its name, its connections, and its removal.

A server that accepts no calls any more leaves the name to the next one
(:mod:`shim.start.stopped`).
"""

from __future__ import annotations

import socket

from shim.linux import sockets
from shim.start import stopped


class ServerSocket:
    """The listening socket of a fork server, first at ``path``."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._listener: socket.socket | None = None
        self._bound: tuple[int, ...] | None = None  # its identity

    def listen(self) -> None:
        """Bind and listen.

        :raises ExistsError: another server listens there.
        """
        self._listener = sockets.listen(f"unix://{self.path}", kind=socket.SOCK_SEQPACKET)
        self._bound = sockets.identity_of(f"unix://{self.path}")
        self._listener.setblocking(False)

    @property
    def is_open(self) -> bool:
        """Whether the server listens."""
        return self._listener is not None

    def fileno(self) -> int:
        """Return the fd, -1 if the socket is closed."""
        return -1 if self._listener is None else self._listener.fileno()

    def accept(self) -> socket.socket:
        """Return a connection.

        :raises OSError: none waits, or no fd is left.
        """
        assert self._listener is not None
        return self._listener.accept()[0]

    def rename(self) -> bool:
        """Leave the name to the next server; return False if that is not possible."""
        if self._bound is not None and (path := stopped.rename(self.path, self._bound)):
            self.path = path
            return True
        return False

    def close(self) -> None:
        """Stop listening, and remove the socket."""
        assert self._listener is not None
        self._listener.close()
        self._listener = None
        # A child that was forked a moment ago may have the listener still.
        if self._bound is not None:
            sockets.remove(f"unix://{self.path}", self._bound)
