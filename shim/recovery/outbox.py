"""Sends a daemon's messages and fds to the keeper, without waiting for it.

A message that the channel does not accept is queued, and sent when it does.  A drop is sent
some turns of the event loop later, and the keeper reads messages only when the bell is rung.
The format of the messages is in :mod:`shim.recovery.messages`; which fds are sent is decided
by :mod:`shim.recovery.deposit`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from shim.linux.fdpassing import send_fds
from shim.linux.sockets import accept_of
from shim.recovery import messages
from shim.recovery.bell import Bell
from shim.recovery.messages import BELL, DROP, READ, encode

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Sequence


# Messages that may be queued.
_QUEUE = 4096
# Turns of the event loop between a drop and its message: the replies and events that go out
# in them do not compete with the keeper for a processor.
_TURNS = 2
# Seconds between two attempts to send fds while too many wait in the channels of all daemons.
_CROWDED = 0.01


class Outbox:
    """The messages to the keeper: sent at once, or queued until its channel accepts them.

    It is open from :meth:`open` to :meth:`close`.  Without a ``channel`` no method sends or
    queues anything, and :meth:`accept` only accepts.  Run :meth:`run` as a task while it is
    open.  ``lost`` is called when the keeper has ended, and ``failed`` with the reason if a
    message can be neither sent nor queued; both close it.  ``bell`` wakes the keeper, which
    otherwise reads no message.
    """

    def __init__(self, lost: Callable[[], None], failed: Callable[[object], None]) -> None:
        self._lost = lost
        self._failed = failed
        self.channel: socket.socket | None = None
        self.bell = Bell()
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._dropped: list[str] = []
        self._wake = trio.lowlevel.ParkingLot()
        self._is_due = False  # the bell is to be rung for a drop
        self._is_crowded = False  # the kernel accepted no more fds

    def open(self, channel: socket.socket) -> None:
        """Send through ``channel``, which is owned from now on.

        The keeper gets the bell; without one it reads each message at once.
        """
        channel.setblocking(False)
        self.channel = channel
        if (bell := self.bell.open()) < 0:
            return
        if self._sent(encode(BELL), [bell]):
            self.bell.reset()
        else:
            self.bell.close()

    def close(self) -> None:
        """Close the channel, and forget the messages that were not sent."""
        channel, self.channel = self.channel, None
        if channel is None:
            return
        with suppress(RuntimeError):  # the event loop does not run yet
            trio.lowlevel.notify_closing(channel)
        channel.close()
        self.bell.close()
        for _, fds in self._queue:
            _close_all(fds)
        self._queue.clear()
        self._dropped.clear()

    def send(self, data: bytes, fds: list[int]) -> None:
        """Send a message, or queue it with copies of ``fds``: the caller may close its own."""
        if self.channel is None:
            return
        if not self._queue and self._sent(data, fds):
            return
        if self.channel is None:  # given up
            return
        if len(self._queue) >= _QUEUE:
            self._failed("the keeper does not take its messages")
            return
        try:
            copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in fds]
        except OSError as exc:
            self._failed(exc)
            return
        self._queue.append((data, copies))
        self._wake.unpark()

    def offer(self, data: bytes, fds: list[int]) -> bool:
        """Send a message now, or not at all; return whether it was sent."""
        return self.channel is not None and not self._queue and self._sent(data, fds)

    def send_last(self, data: bytes) -> None:
        """Send a message if no other one is queued, before the outbox is closed."""
        if self.channel is not None and not self._queue:
            with suppress(OSError):  # it has ended
                self.channel.send(data)

    def accept(self, listener: socket.socket, data: bytes, fds: array[int]) -> None:
        """Accept a connection, store its fd as the first one of ``fds``, and send these.

        If this process is killed between the two system calls, the client's connection ends.
        So no other work is done there.

        :raises BlockingIOError: the listener is non-blocking, and no client waits.
        """
        accept = accept_of(listener)
        if self.channel is None or self._queue:
            fds[0] = accept()[0]
            self.send(data, list(fds))
            return
        send, parts = self.channel.sendmsg, [data]
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
        fds[0] = accept()[0]
        try:
            send(parts, control)
        except OSError:  # it is sent later, or the keeper has ended
            self.send(data, list(fds))
        else:
            self.bell.count()

    def drop(self, names: Sequence[str]) -> None:
        """Send ``drop`` within some turns of the event loop, or before the next fds."""
        if self.channel is None:
            return
        self._dropped += names
        self._is_due = True
        self._wake.unpark()

    def send_drops(self) -> None:
        """Send the messages of :meth:`drop` now."""
        dropped, self._dropped = self._dropped, []
        for names in messages.split(dropped):
            self.send(encode(DROP, *names), [])

    async def run(self) -> None:
        """Send the queued messages until cancelled."""
        while True:
            if self._is_due:
                for _ in range(_TURNS):
                    await trio.lowlevel.checkpoint()
                self._is_due = False
                self.send_drops()
                self.bell.ring()
            while self._queue and self.channel is not None:
                data, fds = self._queue[0]
                if self._sent(data, fds):
                    self._queue.popleft()
                    _close_all(fds)
                elif self._is_crowded:
                    self._is_crowded = False
                    if self._sent(encode(READ), []):
                        self.bell.ring()
                    await trio.sleep(_CROWDED)
                elif self.channel is not None:
                    with suppress(trio.ClosedResourceError):  # given up
                        await trio.lowlevel.wait_writable(self.channel)
            if not self._is_due:
                await self._wake.park()

    def _sent(self, data: bytes, fds: list[int]) -> bool:
        """Return whether the channel accepted a message.

        Without CAP_SYS_ADMIN in the first user namespace, the fds that wait in all channels
        together are limited by RLIMIT_NOFILE (unix(7), ETOOMANYREFS).
        """
        assert self.channel is not None
        try:
            if fds:
                send_fds(self.channel, data, fds)
            else:
                self.channel.send(data)
        except BlockingIOError:
            self.bell.ring()  # it has to read, to make room
            return False
        except (BrokenPipeError, ConnectionResetError):
            self._lost()
            return False
        except OSError as exc:
            if exc.errno == errno.ETOOMANYREFS and fds:
                self._is_crowded = True
                return False
            self._failed(exc)
            return False
        self.bell.count()
        return True


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
