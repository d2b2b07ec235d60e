"""The warm parent: everything is imported and has run once; a daemon is one fork away.

An optimisation, never a dependency.  It is left behind by the first launcher
that finds none, does for later ones what they would have done themselves, and
leaves when it has had no daemon and no caller for a while.  Its daemons are its
children; when it dies they go on under init.

One spare child is kept ready, so that a caller does not even wait for the fork.
While there is none, as when many come at once, each gets a child of its own.

Single-threaded and without an event loop of its own, since it forks: a poll of
the socket, of the signals and of the callers that have not said yet what they
want.  It waits for none of them; see :mod:`shim.start.launcher` for the conversation.
"""

from __future__ import annotations

import os
from contextlib import suppress

from shim.errors import InvalidError, ShimError
from shim.linux import libc, sockets
from shim.start import identity, launcher
from shim.start.server import Server


def start_in_background(name: str) -> None:
    """Fork a server, unless there is one or none is wanted; return at once.

    What fails is not reported here: a manager reads what ``start`` writes, and
    the next ``start`` logs why it uses no server.
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
    """Be the server, in the foreground as a service manager wants it.

    :raises ExistsError: there is one already.
    :raises InvalidError: none can be used: its directory is not to be trusted, or
        this process has a system call filter.
    """
    path = identity.socket_path()
    if not path:
        raise InvalidError("no fork server: this process has a system call filter")
    if reason := _distrust(path):
        raise InvalidError(f"no fork server: {reason}")
    _detach(name)
    return _serve(path, name)


def _distrust(path: str) -> str:
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
    """Let go of the manager that happened to be first, and of everything it gave us."""
    with suppress(PermissionError):  # a session leader already, as under a service manager
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
