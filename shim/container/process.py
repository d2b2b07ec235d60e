"""One process of a container, its init or an exec: identity, state, stdio, exit."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from shim import log
from shim.container.lifecycle import Lifecycle, Op, State
from shim.errors import ShimError, WrongStateError
from shim.offthread import run_off_thread
from shim.reaper import Exit
from shim.records import ExitRecord, exit_file, remove_exit, write_exit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shim.container.bundle import Bundle
    from shim.reaper import Child
    from shim.stdio.streams import Stdio, StdioSpec

# Seconds for the exit record to be on a disk, before the exit is told without.
RECORD = 5.0
# Seconds for what is still in the pipes after the exit to reach the manager.
DRAIN = 10.0

# What Delete and Wait answer for an exec, or a restore, that was never started: the
# status 0 and no time, as Go's shim.
NEVER_STARTED = Exit(0, 0, "the process was never started")


class Process:
    """``id`` is the exec's id, empty for the init.  ``pid`` is 0 until it is known.

    ``busy`` is held while the process is started or deleted, and nothing a
    reader or a signal needs waits for it.  The end of the process is told only
    while it is free, so that a start is always told before it.
    """

    def __init__(self, id_: str, spec: StdioSpec) -> None:
        self.id = id_
        self.spec = spec
        self.life = Lifecycle()
        self.busy = trio.Lock()
        self.pid = 0
        self.child: Child | None = None
        self.exit: Exit | None = None
        self._stdio: Stdio | None = None
        self._stdin_closed = False
        self._done = trio.Event()

    @property
    def state(self) -> State:
        return self.life.state

    def set_stdio(self, stdio: Stdio) -> None:
        """Own ``stdio`` from now on."""
        self._stdio = stdio
        if self._stdin_closed:
            stdio.close_stdin()

    def set_child(self, child: Child) -> None:
        """Record the process the runtime made."""
        self.child = child
        self.pid = child.pid

    async def record_exit(self, child: Child, bundle: Bundle) -> Exit:
        """Wait for the end of ``child``, and write it down before anybody is told.

        A bundle on a disk that hangs delays the telling by ``RECORD`` at most.
        """
        exit_ = await child.wait()
        record = ExitRecord(child.pid, exit_.exit_status, exit_.exited_at, exit_.reason)
        path = str(bundle.path)
        if bundle.in_memory:
            write_exit(path, record, self.id)
            return exit_
        write = partial(write_exit, path, record, self.id)
        remove = partial(self._remove_late_record, path)
        try:
            await run_off_thread(
                write, f"write {exit_file(path, self.id)}", limit=RECORD, late=remove
            )
        except (ShimError, OSError) as exc:
            log.error("an exit is told before its record is on disk", error=exc)
        return exit_

    def _remove_late_record(self, bundle: str) -> None:
        """Remove a record that was written after Delete: another process may have the name."""
        if self.state is State.DELETED:
            remove_exit(bundle, self.id)

    def set_exit(self, exit_: Exit) -> None:
        """Record the exit, and answer everyone who waits for it."""
        self.life.apply(Op.EXIT)
        self.exit = exit_
        if self._stdio is not None:
            # A terminal hangs up only because we say so: the process may have
            # had successors, and managers wait for the end of output.
            self._stdio.exited()
        self._done.set()

    async def wait(self) -> Exit:
        """Wait for the end; return at once if it came, or if the process is deleted."""
        await self._done.wait()
        return self.exit or NEVER_STARTED

    def signal(self, number: int) -> None:
        """Send a signal through the pidfd; 0 only asks whether the process lives.

        :raises NotFoundError: it has ended.
        :raises WrongStateError: it has not been started.
        """
        self.life.check(Op.KILL)
        if self.child is None:
            raise WrongStateError("cannot kill a process that has not been started")
        self.child.signal(number)

    def resize(self, width: int, height: int) -> None:
        """:raises WrongStateError: there is no terminal, or no longer a process on it."""
        self.life.check(Op.RESIZE)
        if self._stdio is None:
            raise WrongStateError("cannot resize a process that has not been started")
        self._stdio.resize(width, height)

    def close_stdin(self) -> None:
        """Let the process see the end of its input once the manager's side is closed too."""
        self._stdin_closed = True
        if self._stdio is not None:
            self._stdio.close_stdin()

    @property
    def fds(self) -> Mapping[int, int]:
        """What the runtime gets as its stdio, which the process inherits."""
        assert self._stdio is not None
        return dict(enumerate(self._stdio.child_fds))

    @property
    def console_socket(self) -> str | None:
        assert self._stdio is not None
        return self._stdio.console_socket

    async def connect_stdio(self) -> None:
        """The runtime has returned: let output flow."""
        assert self._stdio is not None
        await self._stdio.started()

    def check_readers(self) -> None:
        """Look now for readers of what is left: a manager that asks may have opened its ends."""
        if self._stdio is not None:
            self._stdio.check_readers()

    async def wait_output_read(self) -> None:
        """Let whoever is reading have what the process wrote; some seconds at most."""
        if self._stdio is not None:
            await self._stdio.wait_read()

    async def drain(self) -> None:
        """Wait until what the process wrote has left the shim, for ``DRAIN`` at most."""
        if self._stdio is not None:
            await self._stdio.drain(DRAIN)

    async def close_stdio(self) -> None:
        """Begin what :meth:`dispose` waits for: everything is drained."""
        if self._stdio is not None:
            await self._stdio.aclose()

    async def dispose(self) -> None:
        """Let go of stdio, and of everyone who still waits."""
        await self.discard_stdio()
        self._done.set()

    async def discard_stdio(self) -> None:
        """A start failed: close what it opened.  Another start opens it again."""
        stdio, self._stdio = self._stdio, None
        if stdio is not None:
            await stdio.aclose()
