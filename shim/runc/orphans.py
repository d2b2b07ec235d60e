"""Waits for the runtime commands that a killed daemon has left running, or kills them.

They become children of the fork server, which is a subreaper and the parent of the daemon.
It is the parent of the replacement, too.

Source: prctl(2) PR_SET_CHILD_SUBREAPER, proc(5).
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import trio

from shim import log
from shim.linux.files import read_whole
from shim.linux.processes import is_descendant, parent_of
from shim.linux.tree import children_of, stopped_tree

# Seconds between two looks at the commands, and for killed ones to end.
_PAUSE = 0.005
# Seconds for the last thread of a runtime command to end.
_PARENT = 1.0
_KILLED = 5.0
_LONGEST = 1 << 20  # bytes of a command line


class OrphanCommands:
    """The commands for the container ``id_`` with the state directory ``root``."""

    def __init__(self, root: str, id_: str) -> None:
        self._words = {os.fsencode(root), os.fsencode(id_)}
        # A process that was forked to run a command has this until its execve(2).
        self._own = _command_line(os.getpid())

    async def wait(self, limit: float) -> None:
        """Wait until no command runs; kill those that run after ``limit`` seconds."""
        with trio.move_on_after(limit):
            while self._pids():  # noqa: ASYNC110 - the kernel reports no end of such a process
                await trio.sleep(_PAUSE)
            return
        log.warning("killing a runtime command that a killed shim had started", seconds=limit)
        await self.kill()

    async def kill(self) -> None:
        """Kill the commands with all their descendants; wait until they are gone."""
        with trio.move_on_after(_KILLED, shield=True):
            while pids := self._pids():
                for pid in pids:
                    with stopped_tree(pid) as tree:
                        tree.kill()
                await trio.sleep(_PAUSE)
            return
        log.error("cannot end a runtime command that a killed shim had started")

    def _pids(self) -> list[int]:
        own = os.getpid()
        return [pid for pid in children_of(os.getppid()) if pid != own and self._is_command(pid)]

    def _is_command(self, pid: int) -> bool:
        words = _command_line(pid)
        # A container's process may have such a command line, too.
        return (words == self._own or self._words <= set(words)) and _has_own_mounts(pid)


def is_running(root: str, id_: str) -> bool:
    """Return whether a runtime command for the container ``id_`` runs, of any parent."""
    wanted = {os.fsencode(root), os.fsencode(id_)}
    pids = (int(name) for name in os.listdir("/proc") if name.isdecimal())  # noqa: PTH208 - names
    return any(wanted <= set(_command_line(pid)) for pid in pids if pid != os.getpid())


async def open_orphan(pid: int) -> int:
    """Return a pidfd of ``pid`` if a killed daemon left it, -1 otherwise, and for 0.

    It is a child of our parent, and runs another program than this one.  It may be a zombie.
    A runtime command is a zombie before its last thread, and with it the parent of its
    process, has ended: so that is waited for.
    """
    deadline = trio.current_time() + _PARENT
    while (pidfd := _open_child(pid)) < 0 and is_descendant(pid, os.getppid()):
        if trio.current_time() >= deadline:
            return -1
        await trio.sleep(_PAUSE)
    return pidfd


def _open_child(pid: int) -> int:
    if not pid:
        return -1
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return -1
    with suppress(OSError):
        if parent_of(pid) == os.getppid() and not _is_own_program(pid):
            return pidfd
    os.close(pidfd)
    return -1


def kill_orphan(pid: int) -> None:
    """Kill ``pid`` if it is a child of our parent that runs another program than this one.

    Do nothing for 0.
    """
    pidfd = _open_child(pid)
    if pidfd >= 0:
        with suppress(OSError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def _is_own_program(pid: int) -> bool:
    # Another daemon, which has the same parent; or a user's program: then it is in another
    # mount namespace, and so has another path.
    try:
        own = Path(f"/proc/{pid}/exe").readlink() == Path("/proc/self/exe").readlink()
    except FileNotFoundError:
        return False  # a zombie
    return own and _has_own_mounts(pid)


def _has_own_mounts(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/ns/mnt").readlink() == Path("/proc/self/ns/mnt").readlink()
    except OSError:
        return False  # it has ended


def _command_line(pid: int) -> list[bytes]:
    try:
        return read_whole(f"/proc/{pid}/cmdline", _LONGEST).split(b"\0")
    except OSError:
        return []
