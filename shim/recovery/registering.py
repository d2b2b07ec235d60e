"""Registers a daemon with a new fork server after the end of its own.

The daemon sends ``register`` to the server (:mod:`shim.recovery.requests`), which may refuse, for
the same reasons as with ``keep`` (:mod:`shim.recovery.moving`): then it gets nothing.

A server of the daemon's own installation is preferred.  Without one the daemon registers with
a server of another version that can read its states: after an upgrade of the package there is
no other.  Its server must have had the same attributes, which the beginning of a socket's name
shows, up to the hyphen (:mod:`shim.start.identity`): a replacement inherits them.

A daemon without a server waits without waking up, on a fifo beside the servers' sockets.
A new server opens the other end of the fifo and closes it (:func:`ring`), which the kernel
reports to every reader.  inotify(7) would do, but a user has few inotify instances.

Source: fifo(7); poll(2), POLLHUP.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import trio

from shim import log
from shim.errors import UnavailableError
from shim.linux import sockets
from shim.linux.modes import make_fifo, make_trusted
from shim.linux.processes import is_ending
from shim.recovery import requests
from shim.recovery.alike import beside, others
from shim.recovery.messages import REGISTER

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

# Seconds for which only a server of the own installation is accepted, while one may start.
_OWN = 10.0
# Seconds to connect to a server whose backlog is full: many daemons register at once.
_CONNECT = 20.0
# Seconds for a server that ends to close its socket.
_ENDING = 5.0


class Registered(NamedTuple):
    """The channel to a new keeper, and the keeper's pid."""

    channel: socket.socket
    keeper: int


class Search:
    """The search of one daemon for a fork server, after the end of its own at ``path``.

    ``lost`` is the pid of the keeper that has closed its channel, which may listen still.
    ``problem`` is why the last server that was asked does not keep the daemon, "" if none was.
    """

    def __init__(self, path: str, lost: int) -> None:
        self._path = path
        self._lost = lost
        self.problem = ""

    async def run(self, start: Callable[[], Awaitable[bool]] | None = None) -> Registered:
        """Wait for a fork server that accepts this daemon.

        ``start`` is run if no server of the own installation listens.  It may start one, and
        is cancelled when one rings.  It returns whether one may ring later, and is not run
        again if none may.

        :raises InvalidError: another user could replace the server's directory.
        :raises OSError: no fd is left, or the directory cannot be created.
        """
        own_only = start is not None
        while True:
            bell = _open_bell(self._path)
            try:
                self.problem = ""
                found, listens = await self._register(self._path)
                rest = [] if own_only else others(self._path)
                while found is None and rest:
                    found, _ = await self._register(rest.pop())
                if found is not None:
                    return found
                if not (own_only and listens):
                    starting = None if listens else start
                    if not await _rung(bell, starting, _OWN if own_only else math.inf):
                        start = None
            finally:
                os.close(bell)
            own_only = False

    async def _register(self, path: str) -> tuple[Registered | None, bool]:
        """Register with a server at ``path``; return also whether one listens there.

        A server that ends may listen for a moment after the end of its channels.
        """
        lost = self._lost
        deadline = trio.current_time() + _ENDING
        while True:
            found, server = await self._try(path, lost)
            if found is not None or not server:
                return found, bool(server)
            if server == lost and not (is_ending(server) and trio.current_time() < deadline):
                return None, True
            lost = server
            await trio.sleep(sockets.PAUSE)

    async def _try(self, path: str, lost: int) -> tuple[Registered | None, int]:
        """Register, but not with ``lost``; return also the server's pid, 0 if none listens."""
        server, reason = 0, ""
        try:
            with requests.open_connection() as sock:
                with trio.move_on_after(_CONNECT) as scope:
                    peer = await requests.connect(sock, path)
                if scope.cancelled_caught:
                    log.warning("the fork server accepts no connection", socket=path)
                    return None, lost
                server = peer.pid
                if server == lost:
                    return None, lost
                if not requests.is_own(peer):
                    reason = "it is another user's"
                else:
                    channel, reason = await _ask(sock)
                    if channel is not None:
                        return Registered(channel, server), server
        except UnavailableError:
            return None, 0
        except OSError as exc:
            reason = str(exc.strerror)
        self.problem = reason
        log.warning("the fork server does not keep this shim's files", socket=path, reason=reason)
        return None, server


async def _rung(bell: int, start: Callable[[], Awaitable[bool]] | None, limit: float) -> bool:
    """Wait until a server rings, for at most ``limit`` seconds.

    Return False, at once if there is a limit, if ``start`` has returned that none will.
    """
    may_ring = True

    async with trio.open_nursery() as nursery:

        async def run() -> None:
            nonlocal may_ring
            if start is not None and not await start():
                may_ring = False
                if limit < math.inf:
                    nursery.cancel_scope.cancel()

        nursery.start_soon(run)
        with trio.move_on_after(limit):
            await trio.lowlevel.wait_readable(bell)
        nursery.cancel_scope.cancel()
    return may_ring


def ring(path: str) -> None:
    """Report to the daemons without a server that one with their attributes listens."""
    with suppress(OSError):  # no daemon waits
        os.close(os.open(_bell(path), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))


def _bell(path: str) -> str:
    return beside(path, ".waiting")


def _open_bell(path: str) -> int:
    bell = _bell(path)
    make_trusted(bell.rpartition("/")[0])
    with suppress(FileExistsError):
        make_fifo(bell)
    return os.open(bell, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)


async def _ask(sock: socket.socket) -> tuple[socket.socket | None, str]:
    """Ask the server at the other end; return the channel, or why there is none.

    A server that is stopped answers when it is continued, so there is no limit.
    """
    ours, theirs = requests.open_channel()
    try:
        with theirs:
            requests.send(sock, REGISTER, theirs)
        await trio.lowlevel.wait_readable(sock)
        reason = requests.receive_answer(sock)
    except BaseException:
        ours.close()
        raise
    if reason is None:
        reason = "it is outdated, or stops"
    if reason:
        ours.close()
        return None, reason
    return ours, ""
