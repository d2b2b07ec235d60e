"""A process that the reaper watches."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import trio

from shim.errors import NotFoundError
from shim.linux.processes import is_exiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.exit import Exit


class Child:
    """A watched process: one that we spawned, or an orphan that became our child.

    ``pidfd`` is owned.  It is -1 if a killed daemon did not leave it: then the exit is set.
    """

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.exit: Exit | None = None
        self.pidfd = pidfd
        self.is_held = False
        self._reap: Callable[[], None] | None = None
        self._done = trio.Event()

    async def wait(self) -> Exit:
        """Wait for the exit of the process; may be called any number of times."""
        await self._done.wait()
        assert self.exit is not None
        return self.exit

    def signal(self, number: int) -> None:
        """Send a signal; 0 only checks that the process exists.

        :raises NotFoundError: the process has ended.
        :raises OSError: EINVAL, there is no such signal.
        """
        if self.exit is not None:
            raise NotFoundError("process already finished: not found")
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            raise NotFoundError("process already finished: not found") from None

    def hold(self) -> None:
        """Let the process stay a zombie after its exit until :meth:`release`.

        If this daemon is killed meanwhile, the parent of its orphans learns the exit.
        """
        self.is_held = True

    def release(self) -> None:
        """Let the process be reaped: its exit is recorded.  A second call does nothing."""
        self.is_held = False
        reap, self._reap = self._reap, None
        if reap is not None:
            reap()

    def is_ending(self) -> bool:
        """Whether the process has ended, or all its threads are exiting.

        The first process of a pid namespace ends only after all other processes in the
        namespace were reaped; until then its pidfd is not readable.
        """
        return self.exit is not None or is_exiting(self.pid)

    def set_exit(self, exit_: Exit, reap: Callable[[], None] | None = None) -> None:
        """Set the exit; ``reap`` reaps a process that is held."""
        self.exit = exit_
        self._reap = reap
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self._done.set()
