"""Forks the children of the fork server, which hold none of its fds but those they are given."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from shim.linux.fds import close_all_but

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def fork_child(work: Callable[[socket.socket], NoReturn], *fds: int) -> tuple[int, socket.socket]:
    """Fork a child that runs ``work``; return its pid and the server's end of their channel.

    ``work`` gets the child's end.  The child has of the server's fds only 0 to 2, ``fds``
    and the channel.

    :raises OSError: a limit of processes or fds was reached.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, ExitStack() as unless_forked:
        unless_forked.enter_context(ours)
        pid = os.fork()
        if not pid:
            _run_child(partial(work, theirs), [*fds, theirs.fileno()])
        unless_forked.pop_all()
    return pid, ours


def _run_child(work: Callable[[], NoReturn], fds: Sequence[int]) -> NoReturn:
    try:
        signal.set_wakeup_fd(-1)
        for caught in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(caught, signal.SIG_DFL)
        # If the child held the listener, a client could connect to a dead server; a fd of
        # a daemon that it held would delay the end of file for its peer.  The objects of
        # the server keep their numbers, and close none: the child ends by _exit.
        close_all_but(*fds)
        work()
    finally:
        os._exit(1)
