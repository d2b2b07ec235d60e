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
import select
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
# Seconds for a server to answer if there is another one to ask.
_LATE = 5.0
# Seconds for a server that ends to close its socket.
_ENDING = 5.0


class Registered(NamedTuple):
    """The channel to a new keeper, and the keeper's pid."""

    channel: socket.socket
    keeper: int


class _Answer(NamedTuple):
    """The answer of the process ``server``, 0 if none listens.

    ``is_late``: it has not answered yet, or accepts no connection.
    """

    server: int
    found: Registered | None = None
    is_late: bool = False

    @property
    def listens(self) -> bool:
        return bool(self.server) or self.is_late


class Search:
    """The search of one daemon for a fork server, after the end of its own at ``path``.

    ``dropped`` has the pids of the keepers that have closed a channel of this daemon, and may
    listen still.  They are not asked before the next server rings, which empties it.
    ``problem`` is why the last server that was asked does not keep the daemon, "" if none was.
    """

    def __init__(self, path: str, dropped: set[int]) -> None:
        self._path = path
        self._dropped = dropped
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
                found, listens = await self._ask_all(bell, own_only)
                if found is not None:
                    return found
                if not _is_rung(bell):
                    limit = _OWN if own_only and not listens else math.inf
                    if not await _rung(bell, None if listens else start, limit):
                        start = None
                if _is_rung(bell):
                    self._dropped.clear()
            finally:
                os.close(bell)
            own_only = False

    async def _ask_all(self, bell: int, own_only: bool) -> tuple[Registered | None, bool]:
        """Register with a server; return also whether the own one listens.

        Only that one is asked if it does not listen, and ``own_only``.  A server that is stopped
        does not answer: then the others are asked, and after them that one again, because it
        does not ring when it is continued.  Return when another server rings.
        """
        rest = others(self._path)
        own = await self._register(self._path, bell, _LATE if rest else math.inf)
        if own.found is not None or (own_only and not own.listens):
            return own.found, own.listens
        late = self._path if own.is_late else ""
        while rest and not _is_rung(bell):
            path = rest.pop()
            answer = await self._register(path, bell, _LATE if rest or late else math.inf)
            if answer.found is not None:
                return answer.found, own.listens
            late = late or (path if answer.is_late else "")
        if late and not _is_rung(bell):
            return (await self._register(late, bell, math.inf)).found, own.listens
        return None, own.listens

    async def _register(self, path: str, bell: int, limit: float) -> _Answer:
        """Register with a server at ``path``, which may answer for ``limit`` seconds.

        A server that ends may listen for a moment after the end of its channels.
        """
        lost = set(self._dropped)
        deadline = trio.current_time() + _ENDING
        while True:
            answer = await self._try(path, lost, bell, limit)
            server = answer.server
            if answer.found is not None or answer.is_late or not server:
                return answer
            if server in lost and not (is_ending(server) and trio.current_time() < deadline):
                return answer
            lost.add(server)
            await trio.sleep(sockets.PAUSE)

    async def _try(self, path: str, lost: set[int], bell: int, limit: float) -> _Answer:
        """Register, but not with one of ``lost``."""
        server, reason = 0, ""
        try:
            with requests.open_connection() as sock:
                with trio.move_on_after(_CONNECT) as scope:
                    peer = await requests.connect(sock, path)
                if scope.cancelled_caught:
                    log.warning("the fork server accepts no connection", socket=path)
                    return _Answer(0, is_late=True)
                server = peer.pid
                if server in lost:
                    return _Answer(server)
                if not requests.is_own(peer):
                    reason = "it is another user's"
                else:
                    channel, reason = await _ask(sock, bell, limit)
                    if channel is not None:
                        return _Answer(server, Registered(channel, server))
        except UnavailableError:
            return _Answer(0)
        except BlockingIOError:
            if not _is_rung(bell):
                self._explain(path, f"it does not answer in {limit:g} s")
            return _Answer(server, is_late=True)
        except OSError as exc:
            reason = str(exc.strerror)
        self._explain(path, reason)
        return _Answer(server)

    def _explain(self, path: str, reason: str) -> None:
        self.problem = reason
        log.warning("the fork server does not keep this shim's files", socket=path, reason=reason)


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


def _is_rung(bell: int) -> bool:
    """Return whether a server has rung since the bell was opened."""
    poll = select.poll()
    poll.register(bell, select.POLLIN)
    return bool(poll.poll(0))


async def _ask(sock: socket.socket, bell: int, limit: float) -> tuple[socket.socket | None, str]:
    """Ask the server at the other end; return the channel, or why there is none.

    A server that is stopped answers when it is continued, but not before that: another one may
    ring meanwhile.  It finds the connection closed then.

    :raises BlockingIOError: it has not answered when another one rings, or after the limit.
    """
    ours, theirs = requests.open_channel()
    try:
        with theirs:
            requests.send(sock, REGISTER, theirs)
        with trio.move_on_after(limit):
            await _wait_readable(sock, bell)
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


async def _wait_readable(*files: socket.socket | int) -> None:
    """Wait until one of ``files`` is readable."""
    async with trio.open_nursery() as nursery:

        async def wait(file: socket.socket | int) -> None:
            await trio.lowlevel.wait_readable(file)
            nursery.cancel_scope.cancel()

        for file in files:
            nursery.start_soon(wait, file)
