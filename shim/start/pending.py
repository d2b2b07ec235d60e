"""The fork server's connections that have sent no request yet.

Their number and their time are bounded, so that no client can fill or block the server.
"""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

# Seconds from a connection to its request, and the most connections without a request;
# beyond that number the oldest are closed.
_REQUEST_TIMEOUT = 1.0
_MAX_PENDING = 256


class PendingConnections:
    """Connections that are in ``poll`` until they are taken or closed."""

    def __init__(self, poll: select.poll) -> None:
        self._poll = poll
        self._connections: dict[int, tuple[socket.socket, float]] = {}

    @property
    def deadlines(self) -> list[float]:
        """The times, on the monotonic clock, at which :meth:`close_expired` closes one."""
        return [deadline for _, deadline in self._connections.values()]

    def add(self, connection: socket.socket, now: float) -> None:
        """Wait for a request on ``connection``, which is owned from now on."""
        connection.setblocking(False)
        self._connections[connection.fileno()] = connection, now + _REQUEST_TIMEOUT
        self._poll.register(connection, select.POLLIN)
        if len(self._connections) > _MAX_PENDING:
            self._close(next(iter(self._connections)))

    def take(self, fd: int) -> socket.socket | None:
        """Return the connection ``fd``; None if it was closed since the poll."""
        if fd not in self._connections:
            return None
        self._poll.unregister(fd)
        connection, _ = self._connections.pop(fd)
        return connection

    def close_expired(self) -> None:
        """Close the connections that have sent no request in time."""
        now = time.monotonic()
        for fd in [fd for fd, (_, deadline) in self._connections.items() if deadline <= now]:
            self._close(fd)

    def close(self) -> None:
        """Close all connections."""
        for fd in list(self._connections):
            self._close(fd)

    def _close(self, fd: int) -> None:
        connection = self.take(fd)
        assert connection is not None
        connection.close()
