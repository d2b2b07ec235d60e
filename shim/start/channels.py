"""The channels through which daemons send messages and fds to the keeper, and their bells.

A channel is read when it has a message, or, once the daemon has sent a bell, when the bell is
rung or the channel ends.  The keeper carries out the messages, :mod:`shim.start.keeper`; their
format is in :mod:`shim.recovery.messages`.
"""

from __future__ import annotations

import os
import resource
import select
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from shim.linux.fdpassing import receive_fds
from shim.recovery.messages import BELL, GIVE, MAX_FDS, MAX_MESSAGE, PUT, decode
from shim.start.keptfds import close

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shim.start.keptfds import Kept

# Fds that are left for the server itself.
_RESERVE = 256


class Channels:
    """The channels and bells of one fork server's daemons.

    ``poll`` waits for them.  ``obey`` carries out a message and owns its fds then, or returns
    False if the message is malformed.  ``end`` is called at the end of a channel, and
    ``refuse`` for a daemon that breaks the protocol: both close the channel.
    """

    def __init__(
        self,
        poll: select.poll,
        obey: Callable[[Kept, bytes, list[str], list[int]], bool],
        end: Callable[[Kept], None],
        refuse: Callable[[Kept], None],
    ) -> None:
        self._poll = poll
        self._obey = obey
        self._end = end
        self._refuse = refuse
        self._all: dict[int, Kept] = {}
        self._bells: dict[int, Kept] = {}
        self._most = 0  # the limit of fds, once it is raised
        self.others_wait = False  # all channels are to be read

    def open(self, kept: Kept, channel: socket.socket) -> None:
        """Take messages of ``kept`` from ``channel``, which is owned from now on."""
        channel.setblocking(False)
        kept.channel = channel
        self._all[channel.fileno()] = kept
        self._poll.register(channel, select.POLLIN)

    def hang(self, kept: Kept, bell: int) -> None:
        """Read the channel only when the ``bell`` is rung, or at its end."""
        assert kept.channel is not None
        os.set_blocking(bell, False)
        kept.bell = bell
        self._bells[bell] = kept
        self._poll.register(bell, select.POLLIN)
        self._poll.modify(kept.channel, 0)

    def detach(self, kept: Kept) -> int:
        """Return the fd of the channel, which the caller owns from now on."""
        assert kept.channel is not None
        channel, kept.channel = kept.channel, None
        self._poll.unregister(channel)
        del self._all[channel.fileno()]
        return channel.detach()

    def close(self, kept: Kept) -> None:
        """Close the channel and the bell.  A second call does nothing."""
        if kept.channel is not None:
            self._poll.unregister(kept.channel)
            del self._all[kept.channel.fileno()]
            kept.channel.close()
            kept.channel = None
        if kept.bell >= 0:
            self._poll.unregister(kept.bell)
            del self._bells[kept.bell]
            os.close(kept.bell)
            kept.bell = -1

    def receive(self, fd: int) -> bool:
        """Take one message of the channel ``fd``, or all of the channel with the bell ``fd``.

        Return False if it is neither.
        """
        if (kept := self._bells.get(fd)) is not None:
            self._answer_bell(kept)
        elif (kept := self._all.get(fd)) is not None:
            with suppress(BlockingIOError):
                if not self._take(kept):
                    self._end(kept)
        else:
            return False
        return True

    def read_waiting(self) -> None:
        """Take all messages of all channels if a daemon has sent ``read``."""
        if self.others_wait:
            self.others_wait = False
            for kept in [*self._all.values()]:
                self._read(kept)

    def drain(self, kept: Kept) -> None:
        """Take the last messages of a daemon that has ended."""
        with suppress(BlockingIOError):
            while kept.channel is not None and self._take(kept):
                pass

    def send_to_all(self, message: bytes) -> None:
        """Send ``message`` to each daemon that takes it at once."""
        for kept in self._all.values():
            if kept.channel is not None:
                with suppress(OSError):  # it takes no answers, or has ended
                    kept.channel.send(message)

    def _answer_bell(self, kept: Kept) -> None:
        try:
            is_bell = bool(os.read(kept.bell, 8))
        except BlockingIOError:
            return
        except OSError:
            is_bell = False
        if not is_bell:  # an fd of another kind
            self._refuse(kept)
            return
        self._read(kept)

    def _read(self, kept: Kept) -> None:
        """Take all messages of a channel."""
        with suppress(BlockingIOError):
            while kept.channel is not None:
                if not self._take(kept):
                    self._end(kept)

    def _take(self, kept: Kept) -> bool:
        """Take one message; return False at the end of the channel.

        :raises BlockingIOError: no message waits.
        """
        assert kept.channel is not None
        try:
            data, fds, flags = receive_fds(kept.channel, MAX_MESSAGE, MAX_FDS)
        except ConnectionError:
            # The daemon has ended without reading an answer.  The kernel reports that once,
            # and first: then come its messages.
            return True
        if not data:
            return False
        is_whole = not flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC)
        try:
            is_done = is_whole and self._has_room(fds) and self._carry_out(kept, data, fds)
        except OSError:  # an fd of another kind than the message needs
            is_done = False
        if not is_done:
            for fd in fds:
                close(fd)
            self._refuse(kept)
        return True

    def _carry_out(self, kept: Kept, data: bytes, fds: list[int]) -> bool:
        try:
            verb, names = decode(data)
        except ValueError:
            return False
        if len(fds) != (len(names) if verb == PUT else verb in (BELL, GIVE)):
            return False
        if verb == PUT and len({*names}) < len(names):
            return False
        return self._obey(kept, verb, names, fds)

    def _has_room(self, fds: Sequence[int]) -> bool:
        if not self._most:
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return max(fds, default=0) < self._most - _RESERVE
