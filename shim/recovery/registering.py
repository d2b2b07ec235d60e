"""Registers a daemon with a new fork server after the end of its own.

The daemon connects to the server's socket, as a launcher does, and sends ``register``, the
versions of its states, the pidfd of itself and one end of a channel.  The server may refuse,
for the same reasons as with ``keep`` (:mod:`shim.recovery.moving`): then it gets nothing.

A daemon without a server waits without waking up, on a fifo beside the server's socket.
A new server opens the other end of the fifo and closes it (:func:`ring`), which the kernel
reports to every reader.  inotify(7) would do, but a user has few inotify instances.

Source: fifo(7); poll(2), POLLHUP.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import trio

from shim import log
from shim.errors import UnavailableError
from shim.linux import sockets
from shim.linux.fdpassing import send_fds
from shim.linux.modes import make_fifo, make_trusted
from shim.linux.peers import peer_of
from shim.linux.processes import is_ending
from shim.recovery.messages import REGISTER
from shim.recovery.versions import WRITTEN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# Seconds to connect to a server whose backlog is full: many daemons register at once.
_CONNECT = 20.0
# Seconds for a server that ends to close its socket.
_ENDING = 5.0
_LONGEST = 4096  # bytes of an answer
_ROOM = 8 << 20  # bytes of fds on their way
_SO_SNDBUFFORCE = 32


class Registered(NamedTuple):
    """The channel to a new keeper, and the keeper's pid."""

    channel: socket.socket
    keeper: int


async def find_keeper(
    path: str, lost: int, start: Callable[[], Awaitable[None]] | None = None
) -> Registered:
    """Wait for a fork server that listens at ``path`` and accepts this daemon.

    ``lost`` is the pid of the keeper that has closed its channel, which may listen still.
    ``start`` is run if no server listens; it may start one, and is cancelled when one rings.
    It is run again only if that one has ended before it kept this daemon.

    :raises InvalidError: another user could replace the server's directory.
    :raises OSError: no fd is left, or the directory cannot be created.
    """
    while True:
        bell = _open_bell(path)
        try:
            found, listens = await _register(path, lost)
            if found is not None:
                return found
            async with trio.open_nursery() as nursery:
                if start is not None and not listens:
                    nursery.start_soon(start)
                await trio.lowlevel.wait_readable(bell)
                nursery.cancel_scope.cancel()
        finally:
            os.close(bell)


def ring(path: str) -> None:
    """Report to all daemons without a server that one listens at ``path``."""
    with suppress(OSError):  # no daemon waits
        os.close(os.open(_bell(path), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))


def _bell(path: str) -> str:
    directory, _, base = path.rpartition("/")
    return f"{directory}/.{base}.waiting"


def _open_bell(path: str) -> int:
    bell = _bell(path)
    make_trusted(bell.rpartition("/")[0])
    with suppress(FileExistsError):
        make_fifo(bell)
    return os.open(bell, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)


async def _register(path: str, lost: int) -> tuple[Registered | None, bool]:
    """Register with a server at ``path``; return also whether one listens there.

    A server that ends may listen for a moment after the end of its channels.
    """
    deadline = trio.current_time() + _ENDING
    while True:
        found, server = await _try(path, lost)
        if found is not None or not server:
            return found, bool(server)
        if server == lost and not (is_ending(server) and trio.current_time() < deadline):
            return None, True
        lost = server
        await trio.sleep(sockets.PAUSE)


async def _try(path: str, lost: int) -> tuple[Registered | None, int]:
    """Register, but not with ``lost``; return also the pid of the server, 0 if none listens."""
    server, reason = 0, ""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.setblocking(False)
            with trio.move_on_after(_CONNECT) as scope:
                # The kernel reports no event when the backlog has room.
                while not sockets.try_connect(sock, f"unix://{path}"):  # noqa: ASYNC110
                    await trio.sleep(sockets.PAUSE)
            if scope.cancelled_caught:
                log.warning("the fork server accepts no connection", socket=path)
                return None, lost
            server, uid, gid = peer_of(sock)
            if server == lost:
                return None, lost
            if (uid, gid) != (os.geteuid(), os.getegid()):
                reason = "it is another user's"
            else:
                channel, reason = await _ask(sock)
                if channel is not None:
                    return Registered(channel, server), server
    except UnavailableError:
        return None, 0
    except OSError as exc:
        reason = str(exc.strerror)
    log.warning("the fork server does not keep this shim's files", socket=path, reason=reason)
    return None, server


async def _ask(sock: socket.socket) -> tuple[socket.socket | None, str]:
    """Ask the server at the other end; return the channel, or why there is none.

    A server that is stopped answers when it is continued, so there is no limit.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with theirs:
            own = os.pidfd_open(os.getpid())
            try:
                request = b"\0".join([REGISTER, json.dumps(WRITTEN).encode()])
                send_fds(sock, request, [theirs.fileno(), own])
            finally:
                os.close(own)
        await trio.lowlevel.wait_readable(sock)
        answer = sock.recv(_LONGEST)
        reason = str(json.loads(answer).get("error", "")) if answer else "it is outdated, or stops"
    except BaseException:
        ours.close()
        raise
    if reason:
        ours.close()
        return None, reason
    with suppress(OSError):  # only root may
        ours.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _ROOM)
    return ours, ""
