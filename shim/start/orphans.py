"""The exits of orphans: the fork server reaps them by the pidfds that their daemon left."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from shim.recovery.messages import EXIT, encode

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Sequence

_CORE_DUMPED = 0x80


class Holder(Protocol):
    """An object with pidfds.

    ``fds`` are by name, and not all are pidfds.  ``exits`` are the wait statuses of ended
    processes, with the time in ns since the epoch, by the names of their pidfds.
    """

    fds: dict[str, int]
    exits: dict[str, tuple[int, int]]


def answer(
    holder: Holder, channel: socket.socket, words: Sequence[str], reap: Callable[[int], object]
) -> None:
    """Answer a question for an exit, of which ``words`` begin with the name of the pidfd.

    If the process is a zombie, ``reap`` is called with its pid before, and calls :func:`reap`.
    """
    name = words[0]
    if name in holder.fds and name not in holder.exits and (pid := _zombie(holder.fds[name])):
        reap(pid)
    status = map(str, holder.exits.get(name, ()))
    with suppress(OSError):  # the other end takes no answers, or is closed
        channel.send(encode(EXIT, *words, *status))


def reap(pid: int, holders: Iterable[Holder]) -> bool:
    """Reap the zombie ``pid`` if a holder has a pidfd of it; return whether one has.

    All holders that have one get its exit.
    """
    named = [
        (holder, name, fd)
        for holder in holders
        for name, fd in holder.fds.items()
        if _zombie(fd) == pid
    ]
    if named:
        info = os.waitid(os.P_PIDFD, named[0][2], os.WEXITED)
        assert info is not None
        known = _wait_status(info), time.time_ns()
        for holder, name, _ in named:
            holder.exits[name] = known
    return bool(named)


def is_child(fd: int) -> bool:
    """Return whether ``fd`` is the pidfd of a child of this process that was not reaped."""
    with suppress(OSError):
        os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return True
    return False


def _zombie(pidfd: int) -> int:
    """Return the pid of the process of ``pidfd`` if it is a zombie of this process, else 0."""
    with suppress(OSError):
        info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return 0 if info is None else info.si_pid
    return 0


def _wait_status(info: os.waitid_result) -> int:
    """Return the status of a process as of wait(2)."""
    if info.si_code == os.CLD_EXITED:
        return int(info.si_status << 8)
    return int(info.si_status | (_CORE_DUMPED if info.si_code == os.CLD_DUMPED else 0))
