"""A keeper for tests: the other end of a deposit's channel."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress

import trio

from shim.recovery.messages import BELL, DROP, EXIT, MAX_FDS, MAX_MESSAGE, PUT, decode


class Keeper:
    """Holds copies of the fds that a deposit puts."""

    def __init__(self, channel: socket.socket) -> None:
        channel.setblocking(False)
        self.channel = channel
        self.fds: dict[str, int] = {}
        self.bell = -1  # the eventfd by which it is woken; this keeper reads at any time

    def follow(self, channel: socket.socket) -> None:
        """Take the messages of the next daemon from now on."""
        channel.setblocking(False)
        self.channel.close()
        self.channel = channel

    def take(self) -> bool:
        """Take the messages that have arrived; return whether there may be more."""
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.channel, MAX_MESSAGE, MAX_FDS)
            except BlockingIOError:
                return True
            except ConnectionResetError:
                continue  # an answer is unread: reported once, before the messages
            if not data:
                return False
            verb, names = decode(data)
            if verb == PUT:
                for name, fd in zip(names, fds, strict=True):
                    self.discard(name)
                    self.fds[name] = fd
            elif verb == BELL:
                self._close_bell()
                self.bell = fds[0]
            elif verb == DROP:
                for name in names:
                    self.discard(name)
            elif verb == EXIT:
                self.answer(names[0])

    def answer(self, name: str) -> None:
        """Answer the question for the exit of the pidfd ``name``; this keeper does not."""

    def is_rung(self) -> bool:
        """Return whether the bell was rung since the last call."""
        try:
            return bool(os.eventfd_read(self.bell))
        except BlockingIOError:
            return False

    def discard(self, name: str) -> None:
        fd = self.fds.pop(name, -1)
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        self.channel.close()
        self._close_bell()
        for name in list(self.fds):
            self.discard(name)

    def _close_bell(self) -> None:
        if self.bell >= 0:
            os.close(self.bell)
            self.bell = -1


class Server:
    """A fork server for tests, which listens at ``path``."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(path)
        self._listener.listen()
        self._listener.setblocking(False)
        self.requests: list[bytes] = []

    async def answer(self, reply: dict[str, str] | bytes) -> Keeper | None:
        """Answer the next request; return the keeper, None if ``reply`` is a refusal.

        :raises BrokenPipeError: the daemon has closed the connection.
        """
        await trio.lowlevel.wait_readable(self._listener)
        connection, _ = self._listener.accept()
        with connection:
            await trio.lowlevel.wait_readable(connection)
            data, (channel, pidfd), _, _ = socket.recv_fds(connection, MAX_MESSAGE, 2)
            self.requests.append(data)
            os.close(pidfd)
            try:
                connection.send(reply if isinstance(reply, bytes) else json.dumps(reply).encode())
            except BrokenPipeError:
                os.close(channel)
                raise
        if reply:
            os.close(channel)
            return None
        return Keeper(socket.socket(fileno=channel))

    def unanswered(self) -> list[bytes]:
        """Take the connections that wait; return their requests, empty for one without."""
        requests = []
        with suppress(BlockingIOError):
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    connection.setblocking(False)
                    requests.append(connection.recv(MAX_MESSAGE))
        return requests

    def close(self) -> None:
        self._listener.close()


def end_of(reader: int) -> bool:
    """Return whether the pipe of ``reader`` has no writer any more."""
    os.set_blocking(reader, False)
    try:
        return os.read(reader, 1) == b""
    except BlockingIOError:
        return False
