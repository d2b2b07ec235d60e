"""The reaper: only it makes child processes (with ``shim.spawning``) and waits for them.

Every known process is watched through its pidfd, so no exit status can be attributed
to a process with a recycled pid.  The kernel does not recycle the pid of an unreaped
zombie.  So within a block of :meth:`Reaper.runtime_running`, while a runtime creates a
container's process, unknown zombies are not reaped: the pid that the runtime reports
still belongs to the process that it created.

Needs a kernel with waitid(P_PIDFD), 5.4 or newer.

Source: waitid(2), pidfd_open(2), prctl(2) PR_SET_CHILD_SUBREAPER.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from shim import log
from shim.child import Child
from shim.errors import NotFoundError
from shim.exit import UNKNOWN_STATUS, Exit
from shim.linux import libc
from shim.linux.processes import is_descendant, is_gone, reaped_status
from shim.scope import background
from shim.spawning import fork_helper, spawn_program

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence

    from shim.recovery.deposit import Deposit

# Seconds between two attempts to reap a process that has ended but is not yet our child,
# and seconds until the last attempt.  Its parent is a runtime that is about to exit.
_ORPHAN_PAUSE = 0.01
_ORPHAN_LIMIT = 10

# Seconds for a process that a runtime reported to become our child.
_ADOPT_LIMIT = 1.0

# Bytes to read of a signalfd: one signal is pending at most once.
_SIGNALS = 1024

# Also wait for children that send no SIGCHLD.  Source: linux/wait.h.
_WALL = 0x40000000


class Reaper:
    """Spawns processes and waits for them.  Use :func:`open_reaper`, once in a process."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._children: dict[int, Child] = {}
        # Not children of this process: their pids may be those of others by now.
        self._inherited: set[Child] = set()
        self._held: set[int] = set()  # the pids of zombies that are to stay for now
        self._runtimes = 0
        self.commands = 0  # runtime commands that run

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        fds: Mapping[int, int] | None = None,
        directory: str | None = None,
    ) -> Child:
        """Start a program and watch it.

        ``argv[0]`` is looked up on our PATH.  ``fds`` maps the child's fd
        numbers to ours; the missing ones of 0, 1 and 2 are /dev/null, and
        no other fd is inherited.  ``env`` replaces the environment.
        ``directory`` is the working directory, ``/`` if it no longer exists;
        None keeps ours.

        :raises NotFoundError: there is no such program.  The text is that of Go's
            os/exec, which managers match, and a remedy.
        :raises OSError: it cannot be executed, or a limit of processes or fds was reached.
        """
        pid = spawn_program(argv, os.environ if env is None else env, fds or {}, directory)
        return self._watch_new(pid)

    def fork(self, title: Sequence[str], work: Callable[[], object], keep: Sequence[int]) -> Child:
        """Run ``work`` in a forked child of this process, and watch the child.

        The child has fd 2 and the fds in ``keep``, and no other.
        SIGTERM and SIGINT do not end it: they are for the daemon.  ``ps`` shows
        ``title``.  The exit status is 0 if ``work`` returned and 1 if it raised.

        :raises OSError: a limit of processes or fds was reached.
        """
        return self._watch_new(fork_helper(title, work, keep))

    @contextmanager
    def runtime_running(self) -> Iterator[None]:
        """Keep unknown zombies unreaped for the block, in which a runtime creates a process.

        The process may end before the runtime reports its pid; :meth:`adopt` still
        finds it as a zombie.
        """
        self._runtimes += 1
        try:
            yield
        finally:
            self._runtimes -= 1
            if not self._runtimes:
                self._reap_orphans()

    async def adopt(self, pid: int) -> Child:
        """Watch a process that a runtime created, which is alive or a zombie.

        Call it inside the block of :meth:`runtime_running` in which the runtime ran.  The
        process must be a child of ours that is not watched yet: otherwise signals would
        reach another container, or a process of the host.

        :raises NotFoundError: there is no such process, or it is not such a child: the
            runtime is faulty.
        """
        if not pid:
            raise NotFoundError("the runtime reported success, but no pid")
        # A wrapper of the runtime may end before the runtime.  The process becomes our
        # child only when the runtime has ended, too.
        deadline = trio.current_time() + _ADOPT_LIMIT
        while (known := self._is_known(pid)) or not _is_child(pid):
            if known or trio.current_time() >= deadline or not is_descendant(pid):
                raise NotFoundError(
                    f"cannot watch process {pid} of the runtime's pid file: it is not a new "
                    "child of this shim; correct the runtime"
                )
            await trio.sleep(_ORPHAN_PAUSE)
        return self._watch(pid)

    def watch_inherited(self, pid: int, pidfd: int, name: str, deposit: Deposit) -> Child:
        """Watch a process that a killed daemon watched; ``pidfd`` is owned from now on.

        ``name`` is the name of the pidfd in the ``deposit``.  The process may have ended, and
        its pid may be that of another one.  Its exit status comes from waitid(2) if it
        is our child, else from the keeper, else from the kernel, if that keeps it.
        """
        child = Child(pid, pidfd)
        if _is_own_child(pidfd):
            self._children[pid] = child
            read_exit = partial(self._read_exit, child)
        else:
            self._inherited.add(child)
            read_exit = partial(self._read_inherited_exit, child, name, deposit)
        self._nursery.start_soon(self._wait_for, child, read_exit)
        return child

    def kill_orphan(self, pid: int) -> None:
        """Kill and reap ``pid`` if it is an unknown child of ours, left by a failed runtime.

        Do nothing for 0, for a watched process, and for a process that is not our child:
        the pid may have been recycled.  The process is reaped as soon as it ends, also
        within a block of :meth:`runtime_running`; if no fd is left to watch it, then after
        that block.
        """
        if not pid or self._is_known(pid) or not _is_child(pid):
            return
        os.kill(pid, signal.SIGKILL)  # a child that is not reaped keeps its pid
        try:
            self._watch(pid)
        except OSError as exc:
            log.warning("cannot watch a killed process", pid=pid, error=exc)

    @contextmanager
    def ended(self, namespaces: int) -> Iterator[int]:
        """Yield the pid of a zombie in new ``namespaces``, CLONE_NEWUSER for example.

        In the block, the namespaces can be opened through /proc/PID/ns.

        :raises OSError: a process limit was reached, or the host forbids such namespaces.
        """
        pid = libc.clone_ended(namespaces)
        try:
            yield pid
        finally:
            os.waitid(os.P_PID, pid, os.WEXITED | _WALL)

    def _is_known(self, pid: int) -> bool:
        return pid in self._children or pid in self._held

    def _watch_new(self, pid: int) -> Child:
        """Watch a process that this one has just made; kill it if it cannot be watched."""
        try:
            return self._watch(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)  # as in kill_orphan
            raise

    def _watch(self, pid: int) -> Child:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise NotFoundError(f"there is no process {pid}") from None
        child = self._children[pid] = Child(pid, pidfd)
        self._nursery.start_soon(self._wait_for, child, partial(self._read_exit, child))
        return child

    async def _wait_for(self, child: Child, read_exit: Callable[[], Awaitable[bool]]) -> None:
        """Wait for the end of ``child``, and set its exit.

        ``read_exit`` sets the exit of a process that has ended, and returns whether it could.
        """
        deadline = 0.0
        while child.exit is None:
            try:
                await trio.lowlevel.wait_readable(child.pidfd)
            except trio.ClosedResourceError:
                return
            if await read_exit():
                return
            # Its parent, which could reap it, is neither this process nor the keeper, or
            # the keeper is stopped.
            now = trio.current_time()
            deadline = deadline or now + _ORPHAN_LIMIT
            if now >= deadline:
                self._set_unknown(child, "its parent did not end")
                return
            await trio.sleep(_ORPHAN_PAUSE)

    async def _read_exit(self, child: Child) -> bool:
        return self._reap(child)

    async def _read_inherited_exit(self, child: Child, name: str, deposit: Deposit) -> bool:
        if (known := await deposit.exit_of(name)) is not None:
            status, ended_at = known
            self._set_exit(child, Exit(child.pid, _shell_status(status), ended_at))
        elif is_gone(child.pidfd):
            self._set_reaped(child)
        return child.exit is not None

    def _reap(self, child: Child) -> bool:
        """Reap ``child`` if it is a zombie of ours; return whether ``child.exit`` is set.

        One that is held stays a zombie.
        """
        if child.exit is not None:
            return True
        try:
            stays = os.WNOWAIT if child.is_held else 0
            info = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOHANG | stays)
        except ChildProcessError:
            if not is_gone(child.pidfd):
                return False
            self._set_reaped(child)
            return True
        if info is None:
            return False
        exited = info.si_code == os.CLD_EXITED
        status = info.si_status if exited else 128 + info.si_status
        reap = None
        if child.is_held:
            self._held.add(child.pid)
            reap = partial(self._reap_held, child.pid)
        self._set_exit(child, Exit(child.pid, status, time.time_ns()), reap)
        return True

    def _reap_held(self, pid: int) -> None:
        self._held.remove(pid)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
        self._reap_orphans()  # it may have stopped there

    def _set_reaped(self, child: Child) -> None:
        """Set the exit of a process that another process has reaped."""
        status = reaped_status(child.pidfd)
        if status is None:
            self._set_unknown(child, "another process reaped it")
        else:
            self._set_exit(child, Exit(child.pid, _shell_status(status), time.time_ns()))

    def _set_unknown(self, child: Child, reason: str) -> None:
        log.warning("cannot read the exit status of a process", pid=child.pid, reason=reason)
        self._set_exit(child, Exit(child.pid, UNKNOWN_STATUS, time.time_ns(), reason))

    def _set_exit(self, child: Child, exit_: Exit, reap: Callable[[], None] | None = None) -> None:
        if child in self._inherited:
            self._inherited.remove(child)
        else:
            del self._children[child.pid]
        trio.lowlevel.notify_closing(child.pidfd)
        child.set_exit(exit_, reap)

    def _reap_orphans(self) -> None:
        """Reap unknown zombies and the watched ones, unless :meth:`adopt` may need one."""
        while not self._runtimes:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if info is None or info.si_pid in self._held:
                return
            child = self._children.get(info.si_pid)
            if child is None:
                os.waitid(os.P_PID, info.si_pid, os.WEXITED | os.WNOHANG)
            elif not self._reap(child):
                return

    def _forget(self) -> None:
        for child in (*self._children.values(), *self._inherited):
            os.close(child.pidfd)
        self._children.clear()
        self._inherited.clear()

    async def _reap_on_sigchld(self, signals: int) -> None:
        while True:
            self._reap_orphans()
            await trio.lowlevel.wait_readable(signals)
            with suppress(BlockingIOError):
                os.read(signals, _SIGNALS)


@asynccontextmanager
async def open_reaper() -> AsyncIterator[Reaper]:
    """Spawn and reap all children of this process for the length of the block.

    In the block, SIGCHLD is blocked in the calling thread and in those that it starts.
    The end of the block ends no process.
    """
    with ExitStack() as last:
        async with background() as nursery:
            reaper = Reaper(nursery)
            signals = last.enter_context(_sigchld(reaper._reap_orphans))
            # Close the pidfds after the tasks that wait on them have ended.
            last.callback(reaper._forget)
            nursery.start_soon(reaper._reap_on_sigchld, signals)
            yield reaper


@contextmanager
def _sigchld(reap: Callable[[], None]) -> Iterator[int]:
    """Yield an fd that is readable when a child has ended.

    A signal handler would interrupt the event loop, and cost every exit 0.1 ms.  The handler
    here runs only if a thread that was started earlier, with SIGCHLD unblocked, takes the
    signal: then the fd does not become readable, and ``reap`` is called in the event loop.
    """
    run_sync_soon = trio.lowlevel.current_trio_token().run_sync_soon
    is_open = True

    def reap_in_block() -> None:
        if is_open:
            reap()

    def handle(_number: int, _frame: object) -> None:
        run_sync_soon(reap_in_block, idempotent=True)

    before = signal.signal(signal.SIGCHLD, handle)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD,))
    try:
        fd = libc.signalfd(signal.SIGCHLD)
        try:
            yield fd
        finally:
            os.close(fd)
    finally:
        is_open = False
        if signal.SIGCHLD not in mask:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGCHLD,))
        if before is not None:  # None: a handler that is not Python's
            signal.signal(signal.SIGCHLD, before)


def _shell_status(status: int) -> int:
    """Return a wait status as in :attr:`Exit.exit_status`."""
    code = os.waitstatus_to_exitcode(status)  # -N for signal N
    return code if code >= 0 else 128 - code


def _is_own_child(pidfd: int) -> bool:
    """Return whether the process of ``pidfd`` is a child of ours, alive or a zombie."""
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _is_child(pid: int) -> bool:
    """Return whether ``pid`` is a child of ours, alive or a zombie."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
