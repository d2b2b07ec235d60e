"""Moves a daemon to another fork server, which forks a replacement of it: an upgrade.

The daemon sends ``keep`` to the new server (:mod:`shim.recovery.requests`), which refuses before
anything moves, for example if it cannot read a version of the states.  Until both servers have
answered, the daemon serves.  Then it releases the turn (:mod:`shim.recovery.turn`), and the old
server sends all fds of the daemon to the new one (:meth:`Deposit.give`), which forks a
replacement.  When that has the turn, the daemon ends.

The old server treats that end as a death, and forks a replacement, too, with the old code.
This second replacement waits for the turn.  It serves if the first one fails, and ends when
the first one serves.  If the old code cannot read the states that the new one writes, the
first one counts as serving as soon as it has read all states, before it writes any.
"""

from __future__ import annotations

import json
import os
import select
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NoReturn

import trio

from shim import log
from shim.errors import ShimError, UnavailableError, WrongStateError
from shim.linux.fdpassing import receive
from shim.recovery import requests
from shim.recovery.messages import ALONE, GO, READY, decode
from shim.recovery.versions import unreadable

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator

    from shim.recovery.deposit import Deposit
    from shim.recovery.turn import Turn

# The exit status of a daemon that another fork server replaces.
MOVED = 76
# Seconds for both fork servers to answer, while the daemon serves; then for the new one to make
# a replacement, while it serves nothing.
_ANSWERS, _READY = 5.0, 5.0
_LONGEST = 4096  # bytes of a message


@asynccontextmanager
async def open_move(deposit: Deposit, path: str) -> AsyncIterator[socket.socket]:
    """Ask the fork server at ``path`` to keep this daemon; yield the channel for :func:`move`.

    Nothing has moved yet, so the daemon serves meanwhile.  Its own fork server has to answer,
    too: one that is stopped is found before the daemon waits for it in :func:`move`.

    :raises WrongStateError: this daemon has no keeper, or the server refuses it.
    :raises UnavailableError: the server or the keeper does not answer.
    """
    if not deposit.is_kept:
        raise WrongStateError("this shim is not kept by a fork server")
    ours, theirs = requests.open_channel()
    with ours:
        with theirs:
            try:
                await _prepare(deposit, path, theirs)
            except OSError as exc:
                raise _failed(path, exc) from None
        yield ours


def move(deposit: Deposit, turn: Turn | None, path: str, channel: socket.socket) -> NoReturn:
    """Move to the fork server at ``path``, and exit; return only with an error.

    The states must be complete: no runtime command runs.  So the daemon serves nothing
    until the end, which is ``_READY`` seconds away at most.  ``turn`` is the turn of this
    daemon, if it replaced another one.

    :raises UnavailableError: the server or the keeper does not answer, or has ended.
    """
    try:
        _move(deposit, turn, path, channel)
    except OSError as exc:
        raise _failed(path, exc) from None
    os._exit(MOVED)


def _failed(path: str, exc: OSError) -> UnavailableError:
    reason = exc.strerror or "no answer in time"
    return UnavailableError(f"cannot move to the fork server {path}: {reason}")


def _move(deposit: Deposit, turn: Turn | None, path: str, channel: socket.socket) -> None:
    if not deposit.is_kept:
        raise _ended()
    if turn is not None:
        # No process but this one may act before its end: the claims of earlier servers
        # are not valid, and the new replacement waits for an answer.
        turn.leave()
    if not deposit.give(channel.fileno()):
        raise UnavailableError("cannot move this shim: its fork server takes no messages")
    verb, words = decode(_receive(channel, deposit.fileno()))
    if verb != READY:
        raise UnavailableError(f"cannot move to the fork server {path}: it made no process")
    log.info("another fork server replaces this shim", socket=path)
    # With states that this version cannot read, its replacement could not serve.
    channel.send(ALONE if unreadable(json.loads(words[0])) else GO)


def _receive(channel: socket.socket, keeper: int) -> bytes:
    """Receive a message, unless the process at the other end of the fd ``keeper`` ends before.

    :raises UnavailableError: that has ended.
    """
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(keeper, 0)  # the kernel reports the end without a request
    found = {fd for fd, _ in poll.poll(_READY * 1000)}
    if channel.fileno() in found:
        return receive(channel, _LONGEST)
    if found:
        raise _ended()
    raise TimeoutError


def _ended() -> UnavailableError:
    return UnavailableError(
        "cannot move this shim: its fork server has ended; repeat the command when "
        "another one keeps its fds"
    )


async def _prepare(deposit: Deposit, path: str, channel: socket.socket) -> None:
    """Have the fork server at ``path`` wait for this daemon's fds, and the keeper answer.

    :raises OSError: as of connect(2).
    """
    waits_for = f"the fork server {path}"
    problem, has_answered = None, False
    with trio.move_on_after(_ANSWERS) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_at_end, deposit, nursery.cancel_scope)
            problem = await _register(path, channel)
            if problem is None:
                waits_for = f"its fork server (process {deposit.keeper})"
                has_answered = await deposit.wait_answer()
            else:
                has_answered = True
            nursery.cancel_scope.cancel()
    if scope.cancelled_caught:
        raise UnavailableError(
            f"cannot move this shim: {waits_for} did not answer in {_ANSWERS:g} s; continue "
            "that process if it is stopped, and repeat the command"
        )
    if not has_answered:
        raise _ended()
    if problem is not None:
        raise problem


async def _cancel_at_end(deposit: Deposit, scope: trio.CancelScope) -> None:
    await deposit.wait_lost()
    scope.cancel()


async def _register(path: str, channel: socket.socket) -> Exception | None:
    """Ask the fork server at ``path`` to keep this daemon, by ``channel``.

    Return why it does not.
    """
    try:
        with requests.open_connection() as sock:
            if not requests.is_own(await requests.connect(sock, path)):
                raise WrongStateError(
                    f"cannot move to the fork server {path}: it is another user's"
                )
            requests.send(sock, requests.KEEP, channel)
            await trio.lowlevel.wait_readable(sock)
            reason = requests.receive_answer(sock)
    except (ShimError, OSError) as exc:
        return exc
    if reason is None:
        return UnavailableError(f"cannot move to the fork server {path}: it is outdated, or stops")
    if reason:
        return WrongStateError(f"the fork server {path} refuses this shim: {reason}")
    return None
