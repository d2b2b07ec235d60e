"""Starts the fork server: a process that has imported and run the code of a daemon.

With it, a ``start`` costs one fork instead of the imports.  The fork server is an
optimisation; without one the launcher does the same work itself.  The first
launcher that finds no server starts one in the background.  The server forks a
child for each later call, and exits when it has had no daemon and no caller for
the idle time.  Daemons are its children; when the server dies they continue as
children of init or of the nearest subreaper.

The server keeps one spare child, so that a caller does not wait for the fork.
While there is no spare, as with simultaneous calls, the server forks a child for
each call.  :mod:`shim.start.server` has its loop.
"""

from __future__ import annotations

import os
from contextlib import suppress

from shim.errors import InvalidError, ShimError
from shim.linux import libc, sockets
from shim.start import identity, launcher
from shim.start.server import Server


def start_in_background(name: str) -> None:
    """Fork a server and return at once; do nothing if one runs or they are disabled.

    Errors are not reported here: the manager reads the output of ``start`` as its
    answer, and the next ``start`` logs why it uses no server.
    """
    if not launcher.is_enabled():
        return
    path = identity.socket_path()
    try:
        if not path or _distrust(path) or sockets.can_connect(f"unix://{path}") or os.fork():
            return
    except (ShimError, OSError):
        return
    status = 1
    with suppress(BaseException):
        _detach(name)
        status = _serve(path, name)
    os._exit(status)


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
    _detach(name)
    return _serve(path, name)


def _distrust(path: str) -> str:
    """Return the result of :func:`launcher.distrust`; empty if no server has run yet."""
    try:
        return launcher.distrust(path)
    except FileNotFoundError:
        return ""


def _serve(path: str, name: str) -> int:
    server = Server(path, name)
    try:
        return server.serve()
    finally:
        server.close()


def _detach(name: str) -> None:
    """Leave the session, the fds and the working directory of the calling manager."""
    with suppress(PermissionError):  # already a session leader, as under a service manager
        os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    libc.set_child_subreaper()
    libc.set_name("trio-shim-fork")
    libc.set_title([name, "forkserver"])
    with suppress(OSError):
        libc.disable_thp()
