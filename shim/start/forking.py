"""Forks the children of the fork server, which hold none of its fds but those they are given."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable


def fork_child(work: Callable[[], NoReturn], *fds: int) -> int:
    """Fork a child that runs ``work`` and has of the server's fds only 0 to 2 and ``fds``."""
    child = os.fork()
    if child:
        return child
    try:
        signal.set_wakeup_fd(-1)
        for caught in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(caught, signal.SIG_DFL)
        # If the child held the listener, a client could connect to a dead server; a fd of
        # a daemon that it held would delay the end of file for its peer.  The objects of
        # the server keep their numbers, and close none: the child ends by _exit.
        first = 3
        for fd in sorted(fds):
            os.closerange(first, fd)
            first = fd + 1
        os.closerange(first, os.sysconf("SC_OPEN_MAX"))
        work()
    finally:
        os._exit(1)
