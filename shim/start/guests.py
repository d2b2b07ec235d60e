"""Daemons that a fork server keeps and is not the parent of: their own server has ended.

Such a daemon is a guest.  The server finds its end by the pidfd that it sent when it registered
(:mod:`shim.recovery.registering`), and cannot wait for it.  Its orphans become children of its
parent, which is init or another subreaper.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress
from typing import TYPE_CHECKING

from shim.linux.processes import is_ending, parent_of

if TYPE_CHECKING:
    from shim.start.keptfds import Kept


class Guests:
    """The guests of one fork server, whose ``poll`` waits for their pidfds."""

    def __init__(self, poll: select.poll) -> None:
        self._poll = poll
        self._by_pidfd: dict[int, Kept] = {}

    def __len__(self) -> int:
        return len(self._by_pidfd)

    def add(self, kept: Kept, pidfd: int) -> None:
        """Wait for the end of a daemon; ``pidfd`` is owned from now on."""
        self._by_pidfd[pidfd] = kept
        kept.guest, kept.parent = pidfd, _parent_of(kept.pid)
        self._poll.register(pidfd, select.POLLIN)

    def ended(self, fd: int) -> Kept | None:
        """Return the guest that has ended if ``fd`` is its pidfd, None if it is no pidfd."""
        if (kept := self._by_pidfd.get(fd)) is not None:
            kept.parent = _parent_of(kept.pid) or kept.parent  # unless it was reaped
        return kept

    def remove(self, kept: Kept) -> None:
        """Close the pidfd.  Do nothing for a daemon that is no guest."""
        if kept.guest >= 0:
            self._poll.unregister(kept.guest)
            del self._by_pidfd[kept.guest]
            os.close(kept.guest)
            kept.guest = -1


def is_ending_daemon(kept: Kept) -> bool:
    """Return whether a daemon, a guest or not, ends or has ended."""
    if kept.guest >= 0:  # another process may have its pid by now
        poll = select.poll()
        poll.register(kept.guest, select.POLLIN)
        if poll.poll(0):
            return True
    return is_ending(kept.pid)


def _parent_of(pid: int) -> int:
    """Return the parent of ``pid``, 0 if that is not known."""
    with suppress(OSError):
        return parent_of(pid)
    return 0
