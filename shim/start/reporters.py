"""Reports exits to daemons that have moved from this fork server to another one.

The processes of such a daemon are orphans of this server.  Only their parent can wait for
them, and the kernel reports their exits to others only since Linux 6.15.  So the server
sends one more fd to the other one, a channel, and keeps the pidfds of its orphans.  The
replacement, and each later one, queries exits there.  The server closes the channel when each
of these pidfds was dropped, or when all copies of the other end are closed.
"""

from __future__ import annotations

import os
import select
import socket
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from shim.linux.fdpassing import receive
from shim.recovery import messages
from shim.recovery.inherited import REPORTS
from shim.recovery.messages import MAX_MESSAGE, decode
from shim.start import orphans
from shim.start.keptfds import close

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shim.start.orphans import Holder


@dataclass(slots=True, eq=False)
class Reporter:
    """One channel, owned, to a daemon that moves or has moved.

    ``fds`` and ``exits`` are those of its keeper, and owned once the reporter ``is_alone``.
    ``peer`` is the inode of the channel's other end.  ``daemon`` is the number of the daemon,
    which has several channels if it has moved here again.
    """

    channel: socket.socket
    peer: int
    fds: dict[str, int]
    exits: dict[str, tuple[int, int]]
    daemon: int
    is_alone: bool = False

    @property
    def is_open(self) -> bool:
        """Whether a daemon may ask for exits."""
        return self.channel.fileno() >= 0


class Reporters:
    """The reporters of one fork server, whose ``poll`` waits for their channels.

    ``reap`` reaps a zombie, and stores its exit in all holders with a pidfd of it; the one
    that it is called with is among them.
    """

    def __init__(self, poll: select.poll, reap: Callable[[int, Holder], object]) -> None:
        self._poll = poll
        self._reap = reap
        self._channels: dict[int, Reporter] = {}
        self._numbers = count()

    def __iter__(self) -> Iterator[Reporter]:
        """Iterate over the reporters whose daemon has moved."""
        return (one for one in self._channels.values() if one.is_alone)

    def open(self, holder: Holder) -> tuple[Reporter, socket.socket]:
        """Report the exits of the orphans of ``holder``; return the other end, too.

        :raises OSError: no fd is left.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        peer = os.fstat(theirs.fileno()).st_ino
        reporter = Reporter(ours, peer, holder.fds, holder.exits, next(self._numbers))
        self._channels[ours.fileno()] = reporter
        self._poll.register(ours, select.POLLIN)
        return reporter, theirs

    def receive(self, fd: int) -> bool:
        """Take one message of the channel ``fd``; return False if that is no channel."""
        if (reporter := self._channels.get(fd)) is None:
            return False
        self._take(reporter)
        return True

    def leave(self, reporter: Reporter) -> None:
        """Close the fds of a daemon that has moved, except for the pidfds of orphans.

        The reporter owns these from then on.  If an earlier reporter of the daemon has the
        pidfd of an orphan, only that one reports its exit.
        """
        fds, exits = reporter.fds, reporter.exits
        taken = [fd for name, fd in fds.items() if name.startswith(f"{REPORTS}/")]
        inodes = {os.fstat(fd).st_ino for fd in taken}
        earlier = [one for one in self if one.peer in inodes]
        reporter.daemon = min((one.daemon for one in earlier), default=reporter.daemon)
        for one in earlier:
            while self._take(one):  # it may drop names that have other processes by now
                pass
        reported = {name for one in earlier for name in one.fds}
        for name in list(fds):
            if name in reported or not (name in exits or orphans.is_child(fds[name])):
                _drop(reporter, name)
        reporter.is_alone = True
        self._end_if_done(reporter)

    def close(self, reporter: Reporter) -> None:
        """Close the channel and what the reporter owns.  A second call does nothing."""
        if not reporter.is_open:
            return
        self._poll.unregister(reporter.channel)
        del self._channels[reporter.channel.fileno()]
        reporter.channel.close()
        if reporter.is_alone:
            for name in list(reporter.fds):
                _drop(reporter, name)

    def _take(self, reporter: Reporter) -> bool:
        """Take one message; return False if there was none, or the channel is closed now."""
        if not reporter.is_open:
            return False
        try:
            verb, words = decode(receive(reporter.channel, MAX_MESSAGE))
        except BlockingIOError:
            return False
        except ConnectionError:
            return True  # an answer is unread: the kernel reports that once, and first
        except ValueError:
            verb, words = b"", []
        match verb, words:
            case messages.EXIT, [_, _]:
                orphans.answer(
                    *(reporter, reporter.channel, words), lambda pid: self._reap(pid, reporter)
                )
            case messages.DROP, _:
                for name in words:
                    _drop(reporter, name)
                self._end_if_done(reporter)
            case _:  # also the end of the channel
                self.close(reporter)
        return True

    def _end_if_done(self, reporter: Reporter) -> None:
        if reporter.is_alone and not reporter.fds:
            self.close(reporter)


def _drop(reporter: Reporter, name: str) -> None:
    reporter.exits.pop(name, None)
    if (fd := reporter.fds.pop(name, -1)) >= 0:
        close(fd)
