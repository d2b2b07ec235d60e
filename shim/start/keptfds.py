"""The fds that one daemon has sent to the keeper, and its deaths: see :mod:`shim.start.keeper`."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shim.recovery.inherited import DAEMON
from shim.recovery.turn import Claim

if TYPE_CHECKING:
    import socket

    from shim.start.reporters import Reporter


@dataclass(slots=True, eq=False)
class Kept:
    """One daemon, and after its death its replacement.

    ``pid`` is 0 between the two.  ``fds`` and ``exits`` are those of an
    :class:`~shim.start.orphans.Holder`; the fds are owned.  ``deaths`` are times on the
    monotonic clock, and so are the following, which are 0 if there is none: until
    ``claims_until`` the daemon, a replacement, may claim processes of its predecessor; at
    ``ended_at`` it counts as ended, since its channel has; at ``fork_at`` its replacement is
    due.  ``has_orphans`` is set if this server may have orphans of it.  ``reporter`` is set
    once its fds were given to another server.  ``bell`` is the eventfd that the daemon writes
    to when its messages are to be read, -1 without one.

    ``mover`` is, until it is replaced, the pidfd of a daemon of another fork server that
    moves to this one.  Its replacement counts only if it has served: ``serves`` is set then,
    or the state has the token of ``claim``.  Before that the other server replaces the
    daemon.  The claim of each of the two servers begins when the fds are sent.

    ``guest`` is, until its death, the pidfd of a daemon that is no child of this server.
    ``parent`` was its parent then, which has its orphans, 0 for a child.  ``gives`` is set
    if it has begun to move to another server.
    """

    pid: int = 0
    channel: socket.socket | None = None
    bell: int = -1
    fds: dict[str, int] = field(default_factory=dict)
    exits: dict[str, tuple[int, int]] = field(default_factory=dict)
    deaths: list[float] = field(default_factory=list)
    claims_until: float = 0.0
    ended_at: float = 0.0
    fork_at: float = 0.0
    attempts: int = 0
    has_orphans: bool = False
    reporter: Reporter | None = None
    mover: int = -1
    serves: bool = True
    claim: Claim = field(default_factory=Claim.new)
    guest: int = -1
    parent: int = 0
    gives: bool = False

    @property
    def has_served(self) -> bool:
        """Whether this server replaces the daemon.

        A daemon that is killed may have counted itself, so that the other server does not
        replace it any more, and not have sent SERVING yet.
        """
        return self.serves or (DAEMON in self.fds and self.claim.has_served(self.fds[DAEMON]))

    @property
    def deadline(self) -> float:
        """The first of the times, 0 without any."""
        times = self.claims_until, self.ended_at, self.fork_at
        return min(filter(None, times), default=0.0)


def close(fd: int) -> None:
    """Close a daemon's fd.  The file system of its file may report an error: it is closed anyway.

    Source: close(2), "Dealing with error returns from close()".
    """
    with suppress(OSError):
        os.close(fd)
