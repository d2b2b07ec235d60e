"""Starts the fork server: a process that has imported and run the code of a daemon.

With it, a ``start`` costs one fork instead of the imports.  The fork server is an
optimisation; without one the launcher does the same work itself.  A ``start`` that finds
no server makes one (:mod:`shim.start.newserver`) and uses it; of several at once, one
makes it and the others wait.  After the death of a server one of its daemons starts another
(:mod:`shim.revival`).  The server forks a child for each call, and exits when it
has had no daemon and no caller for the idle time.  Daemons are its children; when the
server dies they continue as children of init or of the nearest subreaper.

The server keeps one spare child, so that a caller does not wait for the fork.
While there is no spare, as with simultaneous calls, the server forks a child for
each call.  :mod:`shim.start.server` has its loop.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from shim.errors import InvalidError
from shim.linux import libc, sockets
from shim.linux.modes import make_trusted
from shim.recovery.alike import are_alike
from shim.start import identity, launcher, newserver

if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds between two attempts to take the lock, and seconds for which the process that
# holds it may be stopped.
_PAUSE, _STUCK = 0.01, 0.2


def serve_new(name: str, ready: int) -> int:
    """Run the server that a launcher needs; return its exit status.

    Write :data:`newserver.READY` to the fd ``ready``, and close it, once the server
    listens, or one that another launcher has made meanwhile.

    Errors are not reported: the launcher does the work itself then, and logs why it
    uses no server.
    """
    path = identity.socket_path()
    if not path or _distrust(path):
        return 1
    directory, _, base = path.rpartition("/")
    make_trusted(directory)
    lock = _lock(f"{directory}/.{base}.new")
    if lock < 0:
        return os.EX_TEMPFAIL

    def listening() -> None:
        with suppress(BrokenPipeError):  # the launcher has given up
            os.write(ready, newserver.READY)
        os.close(ready)
        os.close(lock)

    if sockets.can_connect(f"unix://{path}"):
        listening()
        return 0
    return _serve(path, name, listening)


def serve_again(name: str, path: str) -> int:
    """Run the server that daemons need whose own, at ``path``, was killed; return its exit status.

    The process is a child of one of these daemons.  After an upgrade of the package it is of
    the new version, and listens at another path; the arguments are those of the old version.
    The status is 1 if the daemon has attributes that its server's callers do not have, 0 at
    once if such a server listens already, and EX_TEMPFAIL if a later attempt may succeed.
    """
    if not are_alike(identity.socket_path(), path):
        return 1
    newserver.leave_caller()
    try:
        return serve_new(name, os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
    except (MemoryError, OSError):
        return os.EX_TEMPFAIL


def _lock(path: str) -> int:
    """Take the lock of the process that makes the server; return its fd.

    Return -1 if the process that holds the lock is stopped, or holds it for too long.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    stuck = 0
    deadline = time.monotonic() + newserver.LIMIT
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            os.pwrite(fd, b"%-20d" % os.getpid(), 0)
            return fd
        holder = os.pread(fd, 20, 0)
        stuck = stuck + 1 if holder and launcher.is_stuck(int(holder)) else 0
        # A holder that has just ended has released the lock.
        if stuck * _PAUSE > _STUCK or time.monotonic() > deadline:
            os.close(fd)
            return -1
        time.sleep(_PAUSE)


def serve_in_foreground(name: str) -> int:
    """Run the server in this process, for a service manager; return its exit status.

    If a server runs already, return 0 at once.

    :raises InvalidError: no process could use the server, since its directory is not
        trusted or this process has a system call filter.
    """
    path = identity.socket_path()
    if not path:
        raise InvalidError("cannot start a fork server: this process has a system call filter")
    if reason := _distrust(path):
        raise InvalidError(f"cannot start a fork server: {reason}")
    newserver.leave_caller()
    return _serve(path, name, lambda: None)


def _distrust(path: str) -> str:
    """Return the result of :func:`launcher.distrust`; empty if no server has run yet."""
    try:
        return launcher.distrust(path)
    except FileNotFoundError:
        return ""


def _serve(path: str, name: str, listening: Callable[[], None]) -> int:
    with suppress(OSError):
        libc.disable_thp()  # before the imports
    libc.set_child_subreaper()
    libc.set_name("trio-shim-fork")
    libc.set_title([name, "forkserver"])
    from shim.start.server import Server  # and with it, all modules of a daemon

    server = Server(path, name)
    try:
        return server.serve(listening)
    finally:
        server.close()
