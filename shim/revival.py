"""Starts a fork server for the daemons whose own was killed, by the OOM killer for example.

Each of these daemons runs :func:`start_server`, and a lock lets one of them do the work, once a
minute.  A fork server that ends on purpose is not started again.

The daemon runs another interpreter, which becomes the server (:mod:`shim.start.forkserver`): the
daemon's own memory holds more than a server needs.  The server is a child of the daemon until
that ends.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from typing import TYPE_CHECKING

import trio

from shim import log
from shim.errors import ShimError
from shim.recovery.alike import beside

if TYPE_CHECKING:
    from shim.reaper import Reaper

# Seconds from the start of a server by a daemon to the next one.
_PAUSE = 60.0
# The exit statuses of a server that would be the same at the next attempt: one listens already,
# or none can (:func:`shim.start.forkserver.serve_again`).
_FINAL = (0, 1)
# Seconds until the server listens.
_LIMIT = 20.0
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


async def start_server(reaper: Reaper, name: str, path: str) -> bool:
    """Start a fork server as the one at ``path``, unless another daemon does so.

    ``name`` is the executable's name.  After an upgrade of the package the server is one of
    the new version.  A failure is logged, and followed by another attempt.  The caller
    cancels this when the server listens.  Return False if none can be started, or one listens.
    """
    while True:
        try:
            if await _is_final(reaper, name, path):
                return False
        except (ShimError, OSError) as exc:
            log.warning("cannot start a fork server", error=exc)
        await trio.sleep(_PAUSE)


async def _is_final(reaper: Reaper, name: str, path: str) -> bool:
    """Try to start a server; return whether no further attempt is useful."""
    lock = os.open(beside(path, ".again"), _FLAGS, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False  # another daemon has the lock, and may end before a server listens
        await trio.sleep(_pause(lock))
        os.pwrite(lock, b"%-20d" % os.getpid(), 0)  # the file's time is that of the last start
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from shim.start.forkserver import "
            f"serve_again; sys.exit(serve_again({name!r}, {path!r}))"
        )
        log.info("starting a fork server, since the last one was killed")
        child = reaper.spawn([sys.executable, "-IS", "-c", code])
        with trio.move_on_after(_LIMIT) as scope:
            ended = await child.wait()
        if scope.cancelled_caught:
            log.warning("cannot start a fork server: it does not listen", seconds=_LIMIT)
            ended = await child.wait()  # a second one would be as slow
        if ended.exit_status:
            log.warning("cannot start a fork server: it has ended", status=ended.exit_status)
        return ended.exit_status in _FINAL
    finally:
        os.close(lock)


def _pause(lock: int) -> float:
    """Return the seconds until a server may be started."""
    info = os.fstat(lock)
    left = info.st_mtime + _PAUSE - time.time() if info.st_size else 0.0
    return min(max(left, 0.0), _PAUSE)  # the clock may have been set
