"""Moves a daemon to another fork server, which forks a replacement of it: an upgrade.

The daemon connects to the new server's socket, as a launcher does, and sends ``keep``, its own
pidfd and one end of a channel.  The new server refuses before anything moves, for example
if it cannot read a version of the states.  Otherwise the daemon releases the turn
(:mod:`shim.recovery.turn`), and the old server sends all fds of the daemon to the new one
(:meth:`Deposit.give`), which forks a replacement.  When that has the turn, the daemon ends.

The old server treats that end as a death, and forks a replacement, too, with the old code.
This second replacement waits for the turn.  It serves if the first one fails, and ends when
the first one serves.  If the old code cannot read the states that the new one writes, the
first one counts as serving as soon as it has read all states, before it writes any.
"""

from __future__ import annotations

import json
import os
import select
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from shim import log
from shim.errors import UnavailableError, WrongStateError
from shim.linux.fdpassing import send_fds
from shim.linux.peers import peer_of
from shim.recovery.messages import ALONE, GO, READY, decode
from shim.recovery.versions import WRITTEN, unreadable

if TYPE_CHECKING:
    from shim.recovery.deposit import Deposit
    from shim.recovery.turn import Turn

# The exit status of a daemon that another fork server replaces.
MOVED = 76
# Seconds for each answer: the daemon serves nothing meanwhile.
_LIMIT = 5.0
_ROOM = 8 << 20  # bytes of fds on their way
_LONGEST = 4096
_SO_SNDBUFFORCE = 32


def move(deposit: Deposit, turn: Turn | None, path: str) -> NoReturn:
    """Move to the fork server at ``path``, and exit; return only with an error.

    The states must be complete: no runtime command runs.  ``turn`` is the turn of this
    daemon, if it replaced another one.

    :raises WrongStateError: this daemon has no keeper, or the server refuses it.
    :raises UnavailableError: the server or the keeper does not answer.
    """
    if not deposit.is_kept:
        raise WrongStateError("this shim is not kept by a fork server")
    try:
        _move(deposit, turn, path)
    except OSError as exc:
        reason = exc.strerror or "no answer in time"
        raise UnavailableError(f"cannot move to the fork server {path}: {reason}") from None
    os._exit(MOVED)


def _move(deposit: Deposit, turn: Turn | None, path: str) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            with suppress(OSError):  # only root may
                ours.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _ROOM)
            _register(path, theirs, deposit.fileno())
        if turn is not None:
            # No process but this one may act before its end: the claims of earlier servers
            # are not valid, and the new replacement waits for an answer.
            turn.leave()
        if not deposit.give(ours.fileno()):
            raise UnavailableError("cannot move this shim: its fork server takes no messages")
        verb, words = decode(_receive(ours, deposit.fileno()))
        if verb != READY:
            raise UnavailableError(f"cannot move to the fork server {path}: it made no process")
        log.info("another fork server replaces this shim", socket=path)
        # With states that this version cannot read, its replacement could not serve.
        ours.send(ALONE if unreadable(json.loads(words[0])) else GO)


def _receive(channel: socket.socket, keeper: int) -> bytes:
    """Receive a message, unless the process at the other end of the fd ``keeper`` ends before.

    :raises UnavailableError: that has ended.
    """
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(keeper, 0)  # the kernel reports the end without a request
    found = {fd for fd, _ in poll.poll(_LIMIT * 1000)}
    if channel.fileno() in found:
        return channel.recv(_LONGEST)
    if found:
        raise UnavailableError(
            "cannot move this shim: its fork server has ended; repeat the command when "
            "another one keeps its fds"
        )
    raise TimeoutError


def _register(path: str, channel: socket.socket, keeper: int) -> None:
    """Ask the fork server at ``path`` to keep this daemon, by ``channel``.

    ``keeper`` is as for :func:`_receive`.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(_LIMIT)
        sock.connect(path)
        server = peer_of(sock)
        if (server.uid, server.gid) != (os.geteuid(), os.getegid()):
            raise WrongStateError(f"cannot move to the fork server {path}: it is another user's")
        own = os.pidfd_open(os.getpid())
        try:
            request = b"\0".join([b"keep", json.dumps(WRITTEN).encode()])
            send_fds(sock, request, [channel.fileno(), own])
        finally:
            os.close(own)
        answer = _receive(sock, keeper)
    if not answer:
        raise UnavailableError(f"cannot move to the fork server {path}: it is outdated, or stops")
    if reason := json.loads(answer).get("error"):
        raise WrongStateError(f"the fork server {path} refuses this shim: {reason}")
