"""Waits for the runtime commands that a killed daemon has left running, or kills them.

They become children of the fork server, which is a subreaper and the parent of the daemon.
It is the parent of the replacement, too.  A daemon that has registered with a fork server
after the end of its own is a child of init or of another subreaper, the adopter, and so are
its orphans.

Source: prctl(2) PR_SET_CHILD_SUBREAPER, proc(5).
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import trio

from shim import log
from shim.linux.processes import command_line, is_descendant, parent_of, started_at
from shim.linux.tree import children_of, stopped_tree
from shim.runc.command import is_about

# Seconds between two looks at the commands, and for killed ones to end.
_PAUSE = 0.005
# Seconds for the last thread of a runtime command to end.
_PARENT = 1.0
_KILLED = 5.0
# Seconds for an execve(2) to set the command line.
_EXEC = 1.0
_EXEC_PAUSE = 0.001


class Orphans:
    """The orphans of a killed daemon for the container ``id_`` with the state directory ``root``.

    ``adopter`` is the process that has them, 0 for the parent of this one.
    """

    def __init__(self, root: str, id_: str, adopter: int = 0) -> None:
        self._parents = {os.getppid(), adopter} - {0}
        self._root, self._id = os.fsencode(root), os.fsencode(id_)
        # A process that was forked to run a command has this until its execve(2).  So has an
        # earlier daemon of the same container, which leads a session.
        self._own = command_line(os.getpid())
        self._seen_at = _clock_ticks()  # the last time at which a command may have run
        # The processes without a command line, with the times at which that was seen first.
        self._unnamed: dict[int, float] = {}

    async def wait(self, limit: float) -> None:
        """Wait until no command runs; kill those that run after ``limit`` seconds."""
        with trio.move_on_after(limit):
            while self._find()[1]:  # noqa: ASYNC110 - the kernel reports no end of such a process
                await trio.sleep(_PAUSE)
            self._seen_at = _clock_ticks()
            return
        log.warning("killing a runtime command that a killed shim had started", seconds=limit)
        await self.kill()

    async def kill(self) -> None:
        """Kill the commands with all their descendants; wait until they are gone."""
        with trio.move_on_after(_KILLED, shield=True):
            while True:
                commands, may_run = self._find()
                if not may_run:
                    break
                for pid in commands:
                    with stopped_tree(pid) as tree:
                        tree.kill()
                await trio.sleep(_PAUSE)
            self._seen_at = _clock_ticks()
            return
        log.error("cannot end a runtime command that a killed shim had started")

    async def open(self, pid: int) -> int:
        """Return a pidfd of ``pid`` if a killed daemon left it, -1 otherwise, and for 0.

        Call it after :meth:`wait`.  The process runs another program than this one, and may be
        a zombie.  A runtime command is a zombie before its last thread, and with it the parent
        of its process, has ended: so that is waited for.
        """
        deadline = trio.current_time() + _PARENT
        while (pidfd := self._open(pid)) < 0 and any(
            is_descendant(pid, parent) for parent in self._parents
        ):
            if trio.current_time() >= deadline:
                return -1
            await trio.sleep(_PAUSE)
        return pidfd

    def end(self, pid: int) -> None:
        """Kill ``pid`` if a killed daemon left it, and it runs another program than this one.

        Call it after :meth:`kill`.  Do nothing for 0.
        """
        pidfd = self._open(pid)
        if pidfd >= 0:
            with suppress(OSError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)

    def _find(self) -> tuple[list[int], bool]:
        """Return the commands that run, and whether a command may run.

        A process in execve(2) has no command line, and may be one.
        """
        now = trio.current_time()
        commands: list[int] = []
        unnamed: dict[int, float] = {}
        for pid in [pid for parent in self._parents for pid in children_of(parent)]:
            if pid == os.getpid():
                continue
            words = command_line(pid)
            # A container's process may have such a command line, too.
            if words is None:
                if _has_own_mounts(pid):
                    unnamed[pid] = self._unnamed.get(pid, now)
            elif self._is_command(pid, words) and _has_own_mounts(pid):
                commands.append(pid)
        self._unnamed = unnamed
        return commands, bool(commands) or any(now < at + _EXEC for at in unnamed.values())

    def _is_command(self, pid: int, words: list[bytes]) -> bool:
        if words == self._own:
            return not _leads_session(pid)
        return is_about(words, self._root, self._id)

    def _open(self, pid: int) -> int:
        if not pid:
            return -1
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return -1
        with suppress(OSError):
            if self._is_left(pid) and not _is_own_program(pid):
                return pidfd
        os.close(pidfd)
        return -1

    def _is_left(self, pid: int) -> bool:
        parent = parent_of(pid)
        if parent == os.getppid():
            return True
        # The adopter reaps at once, and has other children.  So the pid may be that of a new
        # process: then that began when the runtime command, its parent, had ended.
        return parent in self._parents and started_at(pid) <= self._seen_at


async def is_running(root: str, id_: str) -> bool:
    """Return whether a runtime command for the container ``id_`` runs, of any parent.

    Takes a second at most: it waits for processes in execve(2), which have no command line.
    """
    wanted = os.fsencode(root), os.fsencode(id_)
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208 - names
    deadline = trio.current_time() + _EXEC
    while pids:
        unnamed = []
        for pid in pids:
            words = [] if pid == os.getpid() else command_line(pid)
            if words is None:
                unnamed.append(pid)
            elif is_about(words, *wanted):
                return True
        pids = [] if trio.current_time() >= deadline else unnamed
        if pids:
            await trio.sleep(_EXEC_PAUSE)
    return False


def _clock_ticks() -> int:
    """Return the time as :func:`started_at`."""
    ticks = time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
    return int(ticks)


def _is_own_program(pid: int) -> bool:
    # Another daemon, which has the same parent; or a user's program: then it is in another
    # mount namespace, and so has another path.
    try:
        own = Path(f"/proc/{pid}/exe").readlink() == Path("/proc/self/exe").readlink()
    except FileNotFoundError:
        return False  # a zombie
    return own and _has_own_mounts(pid)


def _leads_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return True  # it has ended


def _has_own_mounts(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/ns/mnt").readlink() == Path("/proc/self/ns/mnt").readlink()
    except OSError:
        return False  # it has ended
