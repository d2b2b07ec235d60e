"""The base class of a process's stdio; ``pipes`` and ``terminal`` are the two kinds.

Source: containerd-shim-runc-v2 process/io.go and process/init.go (stdin, which is
opened twice).
"""

from __future__ import annotations

import os
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import trio

from shim import log
from shim.linux import fifos
from shim.linux.fifos import Fd
from shim.stdio.kept import Kept
from shim.stdio.sinks import Logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shim.outputaddress import Address
    from shim.reaper import Reaper
    from shim.stdio.filehelper import FileHelper
    from shim.stdio.keptoverflow import Stages
    from shim.stdio.relay import Relay
    from shim.stdio.spool import Overflow

# Seconds for readers to read the output before the exit is published; the same if
# the relay has stored output; and seconds after which a reader that reads nothing is
# not waited for.
_READ_WAIT = 2.0
_STORED_READ_WAIT = 10.0
_IDLE_READER = 0.2
# The same for readers of the output of an exited process that is killed again.
_KILLED_WAIT = 5.0
_IDLE_KILLED = 2.0
# Seconds for the relays to stop.
_STOP = 5.0


@dataclass(frozen=True, slots=True)
class StdioSpec:
    """The stdio of a request: paths of fifos or files, or an address; empty is none."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class Stdio:
    """The stdio of one process.  Use :func:`shim.stdio.opening.open_stdio`.

    ``kept`` has copies of the fds that a daemon needs that replaces this one.
    """

    def __init__(
        self,
        spec: StdioSpec,
        nursery: trio.Nursery,
        reaper: Reaper,
        logger: Logger | None,
        overflow: Overflow | None = None,
        kept: Kept | None = None,
    ) -> None:
        self.spec = spec
        self._kept = kept or Kept()
        # The runtime's fds 0, 1 and 2; valid until started() or aclose().
        self.child_fds: tuple[int, int, int] = (-1, -1, -1)
        # The path for the runtime's --console-socket, for a terminal.
        self.console_socket: str | None = None
        self._nursery = nursery
        self._reaper = reaper
        self._fds: list[Fd] = []  # all of them
        self._child_ends: list[Fd] = []  # the fds that started() closes
        self._stdin_keeper: Fd | None = None
        self._inputs: list[Relay] = []
        self._outputs: list[Relay] = []
        # The streams that are files: the pipes that each file is written from, by path,
        # and the processes that copy.
        self._files: dict[str, list[Fd]] = {}
        self._helpers: list[FileHelper] = []
        # The arguments of restore_helper() for each.
        self._file_states: list[dict[str, Any]] = []
        self._logger = logger
        self._overflow = overflow  # None: the process waits for a reader
        self._closing = False
        self._closed = trio.Event()

    async def open(self, address: Address, uid: int, gid: int) -> None:
        """Open the manager's side and the process's side; :meth:`started` relays between them."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Return plain JSON for :func:`shim.stdio.opening.restore_stdio`, beside the kept fds.

        It does not change until the stdio is closed.
        """
        return {
            "spec": astuple(self.spec),
            "overflow": None if self._overflow is None else astuple(self._overflow),
            "files": self._file_states,
            "logger": "" if self._logger is None else self._logger.name,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the fds of a killed daemon; :meth:`started` relays again."""
        raise NotImplementedError

    async def started(self) -> None:
        """Close the child's ends and start the relays; the runtime command has returned.

        :raises TimedOutError: the runtime did not send the terminal that it was to send.
        """
        self._close_child_ends()

    def check_readers(self) -> None:
        """Check now for readers that came after the process exited."""
        for relay in self._outputs:
            relay.check_reader()

    def exited(self) -> None:
        """End the output of a terminal: no process opens it again."""

    def resize(self, width: int, height: int) -> None:
        """Set the size of the terminal, in columns and rows; without one this does nothing.

        Docker's clients also resize processes without a terminal, and the Go shim
        returns no error for that.
        """

    def close_stdin(self) -> None:
        """Close the shim's writer of the stdin fifo: stdin ends once the client closes it."""
        if self._stdin_keeper is not None:
            self._stdin_keeper.close()

    async def wait_read(self) -> None:
        """Wait until readers have read the process's output, before the exit is published.

        Clients close their end of the fifo when they receive the exit (containerd 2)
        or when Delete returns (dockerd 20.10), and lose the bytes that are still in
        it.  Returns at once if no byte is left, and after two seconds at the latest,
        or ten if the relay has stored output.

        Source: containerd pkg/cio/io_unix.go, the ``cancel`` of copyIO.
        """
        self.exited()
        if all(relay.is_over for relay in self._outputs):
            return
        kept = self._overflow is not None and any(relay.backlog for relay in self._outputs)
        with trio.move_on_after(_STORED_READ_WAIT if kept else _READ_WAIT):
            for relay in self._outputs:
                await relay.wait_read(_IDLE_READER)

    async def wait_unread(self) -> None:
        """Wait until the unread output of an exited process is read, before a manager closes it.

        Returns after two seconds in which no byte is read, and after five at the latest.

        A containerd that restarts opens the fifos of a stopped task, and sends SIGKILL before
        it deletes the task.  Of a fifo that it has not opened by the answer it reads nothing,
        and containerd 1.6 was seen to close one that it was reading.

        Source: containerd client/task.go Delete (the Cancel of the io), and task_opts.go
        WithProcessKill; containerd/fifo, fifo.go.
        """
        with trio.move_on_after(_KILLED_WAIT):
            for relay in self._outputs:
                relay.check_reader()
                await relay.wait_read(_IDLE_KILLED)

    async def drain(self, timeout: float = 10) -> None:
        """Wait until the process's output has left the shim, at most ``timeout`` seconds."""
        self.exited()
        if not self._helpers and all(relay.is_over for relay in self._outputs):
            return
        with trio.move_on_after(timeout) as scope:
            for relay in self._outputs:
                await relay.wait_drained()
                await relay.wait_read(_IDLE_READER)
            for helper in self._helpers:
                await helper.wait_drained()
        if scope.cancelled_caught:
            log.warning(
                "cannot drain the output, some is lost: its reader or disk does not respond",
                stdout=self.spec.stdout,
            )

    async def aclose(self) -> None:
        """Stop the relays and helpers and close all fds.

        Takes at most some seconds, and is completed even if it is cancelled.
        """
        if self._closing:
            if not self._closed.is_set():
                await self._closed.wait()
            return
        self._closing = True
        try:
            with trio.move_on_after(_STOP, shield=True):
                for relay in (*self._inputs, *self._outputs):
                    await relay.stop()
            await self._stop_helpers()
            for fd in self._fds:
                fd.close()
            self._close_child_ends()
            if self._logger is not None:
                await self._logger.aclose()
            self._kept.close()
        finally:
            self._closed.set()

    def _close_child_ends(self) -> None:
        for fd in self._child_ends:
            fd.close()
        if self._logger is not None:
            self._logger.started()
        self.child_fds = (-1, -1, -1)

    def _own(self, fd: Fd) -> Fd:
        self._fds.append(fd)
        return fd

    def _for_child(self, fd: Fd) -> Fd:
        self._child_ends.append(fd)
        return self._own(fd)

    def _open_file_pipe(self) -> tuple[Fd, Fd]:
        """Return the two non-blocking ends of a pipe from a relay to a file's helper."""
        reader, writer = fifos.open_pipe()
        for fd in (reader, writer):
            os.set_blocking(self._own(fd).number, False)
        return reader, writer

    async def _open_files(self, *, create: bool) -> None:
        """Open the files among the outputs, each in its own helper process."""
        if not self._files:
            return
        from shim.stdio import filehelper  # loaded only for a container with such a stream

        for path, sources in self._files.items():
            helper = await filehelper.open_writer(
                path,
                sources,
                self._reaper,
                create=create,
                timeout=filehelper.OPEN,
                kept=self._kept,
                role=self._add_file_state(path, writes=True, create=create),
            )
            self._helpers.append(helper)

    def _add_file_state(self, path: str, *, writes: bool, create: bool) -> str:
        """Return the role of a new helper process."""
        role = f"file/{len(self._file_states)}"
        self._file_states.append({"path": path, "writes": writes, "create": create, "role": role})
        return role

    def _restore_files(self, state: Mapping[str, Any]) -> None:
        self._file_states = state["files"]
        if not self._file_states:
            return
        from shim.stdio import filehelper

        for arguments in self._file_states:
            helper = filehelper.restore_helper(reaper=self._reaper, kept=self._kept, **arguments)
            if helper is not None:
                self._helpers.append(helper)

    def _open_stages(self, name: str) -> Stages | None:
        """Return the pipes and the record for storing output that survives this daemon; owned.

        None if output is not stored, or need not survive.
        """
        if self._overflow is None or not self._kept.is_active:
            return None
        from shim.stdio.keptoverflow import Stages

        return self._own_stages(Stages.open(self._kept, name))

    def _take_stages(self, name: str) -> Stages | None:
        """Return the pipes and the record that a relay of a killed daemon used; owned."""
        if self._overflow is None:
            return None
        from shim.stdio.keptoverflow import Stages

        stages = Stages.take(self._kept, name)
        return None if stages is None else self._own_stages(stages)

    def _own_stages(self, stages: Stages) -> Stages:
        for fd in stages.fds:
            self._own(fd)
        return stages

    def _restore_logger(
        self, state: Mapping[str, Any], stdout: Fd | None = None, stderr: Fd | None = None
    ) -> None:
        """Take the running logging program, and the open write ends of its pipes."""
        child = self._kept.watch(self._reaper, "logger") if state["logger"] else None
        if child is not None:
            ends = stdout or Fd(-1), stderr or Fd(-1)
            self._logger = Logger(state["logger"], child, *ends, [], self._kept)

    def _start_helpers(self) -> None:
        for helper in self._helpers:
            helper.start(self._nursery)

    async def _stop_helpers(self) -> None:
        if not self._helpers:
            return
        with trio.CancelScope(shield=True):  # each takes two seconds at most
            async with trio.open_nursery() as nursery:
                for helper in self._helpers:
                    nursery.start_soon(helper.stop)

    def _open_null(self) -> Fd:
        return self._for_child(Fd(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)))

    def _open_stdin(self, path: str) -> Fd:
        """Open the manager's stdin fifo, and a writer that defers its end until close_stdin()."""
        reader = self._own(fifos.open_reader(path))
        fifos.grow(reader)
        self._stdin_keeper = self._own(fifos.open_writer(path))
        self._kept.hold({"stdin": reader, "stdin-keeper": self._stdin_keeper})
        return reader

    def _take_stdin(self) -> Fd:
        """Return the manager's stdin fifo of a daemon that was killed, closed if it had ended."""
        keeper = self._kept.take("stdin-keeper")
        self._stdin_keeper = None if keeper is None else self._own(keeper)
        return self._own(self._kept.take("stdin") or Fd(-1))
