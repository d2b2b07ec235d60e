"""A child of the fork server that takes the place of a killed daemon.

It has inherited copies of the daemon's fds, reads the saved states and serves the same socket.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from shim import daemon, log
from shim.container.expected import Expected
from shim.container.snapshot import parse
from shim.errors import InvalidError
from shim.linux import sockets
from shim.linux.fdpassing import receive
from shim.recovery.deposit import Deposit
from shim.recovery.inherited import (
    CALLER,
    DAEMON,
    EXPECTED,
    LISTENER,
    LOG,
    MOVER,
    MOVING,
    PIDFD,
    Inherited,
)
from shim.recovery.messages import ALONE, GO, READY, encode
from shim.recovery.turn import Turn
from shim.recovery.versions import WRITTEN
from shim.start.caller import Caller
from shim.start.keptfds import close
from shim.start.profile import Profile
from shim.ttrpc.callstate import CallState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import trio

    from shim.recovery.turn import Claim


# The functions that read the states of each kind of fd.
_PARSERS: dict[str, Callable[[bytes], object]] = {
    "state": parse,
    "calls": CallState.decode,
    EXPECTED: Expected.parse,
}
# Seconds for a daemon that moves to end, and for its replacement to serve from then on.
_END, _SERVE = 5.0, 10
# Seconds to wait for a replacement in another fork server, which fails or serves.
_TURN = 2 * _END + _SERVE


def become_replacement(
    fds: Mapping[str, int], server: str, parent: int, claim: Claim, channel: socket.socket
) -> NoReturn:
    """In a forked process: become the daemon that left ``fds``.

    ``fds`` and the ``channel`` to the keeper are its only fds but 0 to 2.  ``server`` is the
    path of the fork server's socket, ``parent`` the process that has the daemon's orphans, 0
    for the fork server, ``claim`` the server's claim to replace the daemon.
    """
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        log.configure(2, log.INFO)
        moved, channel = _renumber(fds, channel)
        inherited = Inherited(moved, parent)
        if (fd := inherited.take(LOG)) >= 0:
            os.dup2(fd, 2)
            close(fd)
        if (slot := inherited.take_slot(DAEMON)) is None:
            raise InvalidError("cannot replace a shim: its state is missing")  # noqa: TRY301 - logged below
        turn = inherited.turn = Turn(slot.fd, claim)
        is_move = bool(inherited.names(MOVING))
        if not (granted := _take_turn(turn, inherited)):
            os._exit(0)
        profile = Profile.decode(slot.read())
        if is_move:
            _check_states(inherited)
        if granted == ALONE:
            turn.serve()
        log.configure(2, profile.level)
        profile.apply(_pids(moved) if profile.sched_core else [])
        listener = socket.socket(fileno=inherited.take(LISTENER))
        sockets.take_over(listener)
        caller = _caller(inherited)
        own = {DAEMON: slot.fd, LISTENER: listener.fileno(), LOG: 2}
        starter = "" if profile.is_apart else profile.title[0]
        deposit = Deposit(channel, server, own, inherited.fds, starter)

        async def ready(task_status: trio.TaskStatus[None]) -> bool:
            signal.alarm(0)
            if caller is None:
                task_status.started()
                return True
            with suppress(OSError):  # its end is found below
                caller.answer(profile.answer)  # it may have it, and then ignores this one
            return await caller.wait_received(task_status, deposit)

        daemon.run(profile.settings, listener, ready, deposit, inherited)
        status = 0
    except BaseException as exc:
        log.crash("the replacement of a shim failed", exc)
    finally:
        os._exit(status)


def _take_turn(turn: Turn, inherited: Inherited) -> bytes:
    """Wait for the turn; return GO or ALONE, or nothing if another process serves already.

    If this process replaces a daemon of another fork server, wait for its end, too.  ALONE is
    that its version cannot read the states that this one writes.

    :raises TimeoutError: another process has the turn for too long.
    :raises OSError: the daemon did not move.
    """
    channel, mover = inherited.take(MOVING), inherited.take(MOVER)
    if channel < 0:
        return GO if turn.take(_TURN) else b""
    # Without a handler the signal ends this process: the other server's goes on.
    signal.alarm(_SERVE)
    with socket.socket(fileno=channel) as moving:
        moving.settimeout(_END)
        if not turn.take(_END):
            return b""
        moving.send(encode(READY, json.dumps(WRITTEN)))
        granted = receive(moving, max(map(len, (GO, ALONE))))
        if granted not in (GO, ALONE):
            return b""
    poll = select.poll()
    poll.register(mover, select.POLLIN)
    if not poll.poll(_END * 1000):
        return b""
    os.close(mover)
    signal.alarm(_SERVE)
    return granted


def _check_states(inherited: Inherited) -> None:
    """Read all states before the first is written: another version has written them.

    :raises InvalidError: one cannot be read; the other server's replacement goes on.
    """
    for name in inherited.names(""):
        kind = name.partition("/")[0]
        if kind in _PARSERS:
            with inherited.copy_slot(name) as slot:
                _PARSERS[kind](slot.read())


def _renumber(
    fds: Mapping[str, int], channel: socket.socket
) -> tuple[dict[str, int], socket.socket]:
    """Give the fds the lowest numbers from 3, which keeps the process's table small."""
    owners = {fd: name for name, fd in fds.items()} | {channel.detach(): ""}
    moved = {}
    for number, fd in enumerate(sorted(owners), start=3):
        # A lower number is one that was moved before, or free.
        if number != fd:
            os.dup2(fd, number, inheritable=False)
            close(fd)
        moved[owners[fd]] = number
    return moved, socket.socket(fileno=moved.pop(""))


def _pids(fds: Mapping[str, int]) -> list[int]:
    """Return the pids of the processes in ``fds`` that have not been reaped."""
    texts = [
        Path(f"/proc/self/fdinfo/{fd}").read_text()
        for name, fd in fds.items()
        if name.startswith(f"{PIDFD}/")
    ]
    lines = (line for text in texts for line in text.split("\n") if line.startswith("Pid:"))
    return [pid for line in lines if (pid := int(line.split()[1])) > 0]


def _caller(inherited: Inherited) -> Caller | None:
    """Return the connection to the caller of ``start``, unless that has the address."""
    fd = inherited.take(CALLER)
    return None if fd < 0 else Caller(socket.socket(fileno=fd), 0)
