"""Makes a fork server for a ``start`` that found none, which then uses it.

So the first daemon of a host comes from the fork server too, and shares its memory like
all later ones.  The launcher forks a child, which imports the daemon's modules and becomes
the server (:mod:`shim.start.forkserver`); the launcher itself imports none of them.  It
waits until the server listens, until a deadline, and does the work itself if there is none
by then.
"""

from __future__ import annotations

import os
import time

from shim.linux.fds import close_from
from shim.start import launcher

# Seconds that the process of a new server waits for another one to make it.  One is made in
# 0.2 seconds on an idle machine.
LIMIT = 10.0
READY = b"1"
_TICK = 0.1


def make(name: str, deadline: float) -> bool:
    """Make a server, or wait for the one that another launcher is making.

    Return whether it listens before ``deadline``, on the monotonic clock.  ``name`` is the
    executable's name.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        return False
    if pid == 0:
        _become_server(name, writer)
    os.close(writer)
    try:
        return _wait_ready(reader, pid, deadline)
    finally:
        os.close(reader)


def _become_server(name: str, ready: int) -> None:
    """In the child: become the server; write READY to the fd ``ready`` when it listens."""
    status = 1
    try:
        ready = leave_caller(ready)
        from shim.start import forkserver

        status = forkserver.serve_new(name, ready)
    except BaseException:
        pass
    finally:
        os._exit(status)


def leave_caller(keep: int = -1) -> int:
    """Leave the session, the fds and the working directory of the caller.

    The manager reads the caller's output until every process has closed it.  Returns the
    new number of the fd ``keep``.
    """
    try:  # noqa: SIM105 - contextlib costs the launcher a millisecond
        os.setsid()
    except PermissionError:
        pass  # already a session leader, as under a service manager
    null = os.open(os.devnull, os.O_RDWR)
    if keep >= 0:
        os.dup2(keep, 3, inheritable=False)
    for number in (0, 1, 2):
        os.dup2(null, number)
    close_from(4 if keep >= 0 else 3)
    os.chdir("/")
    return 3


def _wait_ready(reader: int, pid: int, deadline: float) -> bool:
    """Wait until the child ``pid`` has written READY; it may end or be stopped before."""
    import select

    stuck = 0
    while stuck < 2 and time.monotonic() < deadline:
        if select.select([reader], [], [], _TICK)[0]:
            return os.read(reader, len(READY)) == READY
        stuck = stuck + 1 if launcher.is_stuck(pid) else 0
    return False
