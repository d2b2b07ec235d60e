"""One process of a container, init process or exec: identity, state, stdio, exit."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from shim import log
from shim.container.lifecycle import Lifecycle, Op, State
from shim.container.snapshot import Fixed, ProcessSnapshot
from shim.errors import ShimError, WrongStateError
from shim.exit import NEVER_STARTED
from shim.offthread import run_off_thread, wait_unchanged
from shim.records import exit_file, note_published, read_exit, remove_exit, write_exit
from shim.stdio.streams import StdioSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shim.child import Child
    from shim.container.bundle import Bundle
    from shim.exit import Exit
    from shim.stdio.streams import Stdio

# Seconds to write the exit record to a disk; after that the exit is published without.
RECORD = 5.0
# Seconds after the exit for the output in the pipes to reach the manager.
DRAIN = 10.0
# Seconds before the caller's deadline that a Delete leaves for the runtime's delete.
_DELETE = 2.0


class Process:
    """``id`` is the exec's id, empty for the init process.  ``pid`` is 0 until it is known.

    ``busy`` is held while the process is started or deleted.  No State, Wait or signal
    waits for it.  The exit of an init process is published while ``busy`` is free, so that
    its start is always published first.  ``doing`` is as in a
    :class:`~shim.container.snapshot.ProcessSnapshot`, but is not in the state while
    ``prepares`` is set: nothing of the operation has to be undone then.
    """

    def __init__(self, id_: str, spec: StdioSpec) -> None:
        self.id = id_
        self.spec = spec
        self.life = Lifecycle()
        self.busy = trio.Lock()
        self.doing = ""
        self.prepares = False
        self.pid = 0
        self.child: Child | None = None
        self.exit: Exit | None = None
        self._stdio: Stdio | None = None
        # For snapshots, made when first needed.
        self._spec_value: Fixed | None = None
        self._stdio_value: Fixed | None = None
        self._stdin_closed = False
        self._is_recorded = False
        self._is_removed = False  # its files
        self._done = trio.Event()

    @property
    def state(self) -> State:
        return self.life.state

    def snapshot(self) -> ProcessSnapshot:
        """Return the present state."""
        if self._spec_value is None:
            self._spec_value = Fixed(
                stdin=self.spec.stdin,
                stdout=self.spec.stdout,
                stderr=self.spec.stderr,
                terminal=self.spec.terminal,
            )
        if self._stdio_value is None and self._stdio is not None:
            self._stdio_value = Fixed(self._stdio.state())
        return ProcessSnapshot(
            self.id,
            self._spec_value,
            self.life.state,
            "" if self.prepares else self.doing,
            self.pid,
            self.exit,
            self._stdin_closed,
            self._stdio_value,
        )

    @classmethod
    def restored(cls, snapshot: ProcessSnapshot) -> Process:
        """Return a process in the state ``snapshot``; its child and its stdio are missing."""
        process = cls(snapshot.id, StdioSpec(**snapshot.spec))
        process.restore(snapshot)
        return process

    def restore(self, snapshot: ProcessSnapshot) -> None:
        """Take on the state ``snapshot``; the child and the stdio are missing."""
        self.life = Lifecycle(snapshot.state)
        self.doing = snapshot.doing
        self.pid = snapshot.pid
        self.exit = snapshot.exit
        self._stdin_closed = snapshot.stdin_closed
        if self.exit is not None:
            self._done.set()

    def set_stdio(self, stdio: Stdio) -> None:
        """Own ``stdio``: this process closes it."""
        self._stdio, self._stdio_value = stdio, None
        if self._stdin_closed:
            stdio.close_stdin()

    def set_child(self, child: Child) -> None:
        """Set the process that the runtime created."""
        self.child = child
        self.pid = child.pid

    async def record_exit(self, child: Child, bundle: Bundle) -> Exit:
        """Wait for the exit of ``child``, and write its record before it is published.

        A disk that hangs delays the return by ``RECORD`` seconds at most.
        """
        exit_ = await child.wait()
        try:
            await self._write_exit(exit_, bundle)
        finally:
            child.release()
        return exit_

    async def _write_exit(self, exit_: Exit, bundle: Bundle) -> None:
        path = str(bundle.path)
        if bundle.in_memory:
            write_exit(path, exit_, self.id, unpublished=True)
            self._is_recorded = True
            return
        write = partial(write_exit, path, exit_, self.id)
        remove = partial(self._remove_late_record, path, exit_)
        record = exit_file(path, self.id)
        try:
            await run_off_thread(
                write, f"write {record}", limit=RECORD, late=remove, changes=record
            )
            self._is_recorded = True
        except (ShimError, OSError) as exc:
            log.error("cannot write the exit record; the exit is published without", error=exc)

    def note_published(self, bundle: Bundle) -> None:
        """Note in the record that the exit event is queued: ``delete`` adds no other."""
        if bundle.in_memory:
            note_published(str(bundle.path), self.id)

    async def wait_recorded(self, bundle: Bundle) -> None:
        """Wait until the record of an earlier process with this id is not written any more.

        :raises TimedOutError: the disk does not respond.
        """
        await wait_unchanged(exit_file(str(bundle.path), self.id), RECORD)

    def remove_exec_files(self, bundle: Bundle, *, responds: bool) -> None:
        """Remove all files of an exec, if the disk of the bundle ``responds``.

        Files that stay harm no later exec of this id, which replaces or removes them.
        """
        self._is_removed = True
        if responds:
            bundle.remove_exec_files(self.id)

    def _remove_late_record(self, bundle: str, exit_: Exit) -> None:
        """Remove a record that was written after Delete: another process may have its name."""
        if (self._is_removed or self.state is State.DELETED) and exit_ == read_exit(
            bundle, self.id
        ):
            remove_exit(bundle, self.id)

    @property
    def is_exit_kept(self) -> bool:
        """Whether a replacement of this daemon knows the exit, if the process was reaped."""
        was_reaped = self.child is not None and self.child.exit is not None
        return not was_reaped or self._is_recorded or self.exit is not None

    def set_exit(self, exit_: Exit) -> None:
        """Set the exit and the state STOPPED, and let every :meth:`wait` return."""
        self.life.apply(Op.EXIT)
        self.exit = exit_
        if self._stdio is not None:
            # Managers wait for the end of the output.  Children that outlive the process
            # may keep its terminal open, so the relay ends here.
            self._stdio.exited()
        self._done.set()

    async def wait(self) -> Exit:
        """Wait for the exit; return at once after it, or if the process is deleted."""
        await self._done.wait()
        return self.exit or NEVER_STARTED

    def signal(self, number: int) -> None:
        """Send a signal through the pidfd; 0 sends none, and checks that the process runs.

        :raises NotFoundError: the process has exited.
        :raises WrongStateError: it has not been started.
        """
        self.life.check(Op.KILL)
        if self.child is None:
            raise WrongStateError("cannot kill a process that has not been started")
        self.child.signal(number)

    def resize(self, width: int, height: int) -> None:
        """Set the size of the terminal, in columns and rows.

        :raises WrongStateError: the process has not been started, or has exited.
        """
        self.life.check(Op.RESIZE)
        if self._stdio is None:
            raise WrongStateError("cannot resize a process that has not been started")
        self._stdio.resize(width, height)

    def close_stdin(self) -> None:
        """Close the shim's end of stdin; the input ends once the manager closes its end, too."""
        self._stdin_closed = True
        if self._stdio is not None:
            self._stdio.close_stdin()

    @property
    def fds(self) -> Mapping[int, int]:
        """The stdio of the runtime command, which the process inherits: fd numbers to fds."""
        assert self._stdio is not None
        return dict(enumerate(self._stdio.child_fds))

    @property
    def console_socket(self) -> str | None:
        assert self._stdio is not None
        return self._stdio.console_socket

    async def connect_stdio(self) -> None:
        """Start the relays of the stdio, after the runtime command has returned."""
        assert self._stdio is not None
        await self._stdio.started()
        if self.exit is not None:  # it exited before its daemon was killed
            self._stdio.exited()

    def check_readers(self) -> None:
        """Check now for readers of the output: a manager that calls may have opened its fifos."""
        if self._stdio is not None:
            self._stdio.check_readers()

    async def wait_unread(self) -> None:
        """Wait until readers have read the output, five seconds at most."""
        if self._stdio is not None:
            await self._stdio.wait_unread()

    async def wait_output_read(self) -> None:
        """Wait until readers have read the output, ten seconds at most."""
        if self._stdio is not None:
            await self._stdio.wait_read()

    async def drain(self) -> None:
        """Wait until the output has left the shim, ``DRAIN`` seconds at most.

        Returns early enough for a Delete to succeed before its caller's deadline.
        """
        if self._stdio is not None:
            left = trio.current_effective_deadline() - trio.current_time() - _DELETE
            await self._stdio.drain(max(0.0, min(DRAIN, left)))

    async def close_stdio(self) -> None:
        """Close the drained stdio; :meth:`dispose` waits for the end of this."""
        if self._stdio is not None:
            await self._stdio.aclose()

    async def dispose(self) -> None:
        """Close stdio, and let every :meth:`wait` return."""
        await self.discard_stdio()
        self._done.set()

    async def discard_stdio(self) -> None:
        """Close the stdio of a failed start; another start opens it again."""
        stdio, self._stdio, self._stdio_value = self._stdio, None, None
        if stdio is not None:
            await stdio.aclose()
