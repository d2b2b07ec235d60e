"""Exits that earlier fork servers report to a daemon which has moved to another one.

A fork server stays the parent of the processes of a daemon that moves, so only it can wait
for them (:mod:`shim.start.reporters`).  Its channel is among the fds of the daemon, so each
replacement has it, and takes it along when it moves again.
"""

from __future__ import annotations

import os
import socket
from itertools import count
from typing import TYPE_CHECKING

import trio

from shim import log
from shim.linux.fdpassing import receive
from shim.recovery import messages
from shim.recovery.inherited import REPORTS
from shim.recovery.messages import DROP, EXIT, MAX_MESSAGE, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shim.recovery.inherited import Inherited

# Seconds for a fork server to answer.
_ANSWER = 5.0


class Reports:
    """The channels in ``inherited``, owned.

    ``drop`` has the keeper close its copy of the fd with that name.  Run :meth:`run` as a task.
    """

    def __init__(self, inherited: Inherited, drop: Callable[[str], None]) -> None:
        processes = inherited.processes()
        self._channels = [
            _Channel(f"{REPORTS}/{number}", socket.socket(fileno=fd), processes, drop)
            for number, fd in inherited.take_all(f"{REPORTS}/").items()
        ]

    async def run(self) -> None:
        """Take answers until every server has ended, or has nothing more to report."""
        try:
            async with trio.open_nursery() as nursery:
                for channel in self._channels:
                    nursery.start_soon(channel.run)
        finally:
            for channel in self._channels:
                channel.close()

    async def exit_of(self, name: str) -> tuple[int, int] | None:
        """Return the wait status of the process of the pidfd ``name``, and its time in ns.

        None if no server knows it.
        """
        for channel in self._channels:
            if (known := await channel.exit_of(name)) is not None:
                return known
        return None

    def drop(self, names: Iterable[str]) -> None:
        """Have the servers close their copies.

        Call this before the keeper drops its copies: a process that gets the name of an
        earlier one later must not get its exit.
        """
        for channel in self._channels:
            channel.drop(names)


class _Channel:
    """One channel.  The server may know the exits of ``processes``."""

    def __init__(
        self,
        name: str,
        sock: socket.socket,
        processes: Iterable[str],
        drop: Callable[[str], None],
    ) -> None:
        sock.setblocking(False)
        self._name = name
        self._sock = sock
        self._processes = set(processes)
        self._drop = drop
        # An answer to an earlier process may be unread, or one that came too late.
        self._own = os.urandom(8).hex()
        self._numbers = count()
        self._answered: dict[str, trio.Event] = {}
        self._exits: dict[str, tuple[int, int]] = {}

    async def run(self) -> None:
        while self._is_open:
            try:
                await trio.lowlevel.wait_readable(self._sock)
                verb, words = decode(receive(self._sock, MAX_MESSAGE))
            except (BlockingIOError, ConnectionResetError):
                continue  # a message to the server is unread: reported once, before its answers
            except (OSError, ValueError, trio.ClosedResourceError):
                verb, words = b"", []
            match verb, words:
                case messages.EXIT, [_, token, *status]:
                    if (answered := self._answered.get(token)) is not None:
                        if status:
                            self._exits[token] = int(status[0]), int(status[1])
                        answered.set()
                case _:
                    self._end()

    async def exit_of(self, name: str) -> tuple[int, int] | None:
        if name not in self._processes:
            return None
        token = f"{self._own}/{next(self._numbers)}"
        answered = self._answered[token] = trio.Event()
        try:
            self._send(encode(EXIT, name, token))
            if self._is_open:
                with trio.move_on_after(_ANSWER):
                    await answered.wait()
        finally:
            del self._answered[token]
        return self._exits.pop(token, None)

    def drop(self, names: Iterable[str]) -> None:
        dropped = [name for name in names if name in self._processes]
        self._processes.difference_update(dropped)
        for part in messages.split(dropped):
            self._send(encode(DROP, *part))

    def _send(self, data: bytes) -> None:
        if not self._is_open:
            return
        try:
            self._sock.send(data)
        except OSError as exc:
            # A queue could be lost with this daemon, see Reports.drop().
            log.warning(
                "an earlier fork server takes no messages: the exits of processes that it "
                "is the parent of may be unknown",
                error=exc,
            )
            self._end()

    @property
    def _is_open(self) -> bool:
        return self._sock.fileno() >= 0

    def _end(self) -> None:
        """Close the channel: its server has ended, or has nothing more to report."""
        if self._is_open:
            self.close()
            self._drop(self._name)

    def close(self) -> None:
        if self._is_open:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
        for answered in self._answered.values():
            answered.set()
