"""A process's stdin, stdout and stderr: one object owns all of their fds.

Open it before the runtime runs, give :attr:`Stdio.child_fds` and
:attr:`Stdio.console_socket` to the runtime, then call :meth:`Stdio.started`,
:meth:`Stdio.exited` when the process has ended, :meth:`Stdio.drain` before it
is deleted, and :meth:`Stdio.aclose` whatever happened.

Source: containerd-shim-runc-v2 process/io.go, process/init.go (stdin and its
second opening) and runc/platform.go (the terminal).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import trio

from shim import log
from shim.linux import fifos
from shim.linux.fifos import Fd
from shim.stdio.console import ConsoleSocket, set_size
from shim.stdio.relay import CopyRelay, Relay, SpliceRelay, TerminalRelay
from shim.stdio.sinks import (
    LOGGER_READY,
    Address,
    Child,
    Logger,
    Spawner,
    open_log_file,
    open_logger,
    open_output,
    parse_address,
)

__all__ = ["Child", "Spawner", "Stdio", "StdioSpec", "open_stdio"]

# Seconds for a runtime that has returned to have sent the terminal.
_CONSOLE = 10.0
# Seconds for readers to take what there is before they hear of the exit, and
# after which one that takes nothing is not waited for.
_HAND_OVER = 2.0
_PATIENCE = 0.2
# Seconds for relays to notice that they are stopped.
_STOP = 5.0


@dataclass(frozen=True, slots=True)
class StdioSpec:
    """What the manager asks for: paths of fifos or files, or an address; empty is none."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class Stdio:
    """The stdio of one process.  Use :func:`open_stdio`."""

    def __init__(self, spec: StdioSpec, nursery: trio.Nursery, logger: Logger | None) -> None:
        self.spec = spec
        # What the runtime gets as 0, 1 and 2; valid until started() or aclose().
        self.child_fds: tuple[int, int, int] = (-1, -1, -1)
        # The path for the runtime's --console-socket, for a terminal.
        self.console_socket: str | None = None
        self._nursery = nursery
        self._fds: list[Fd] = []  # all of them
        self._child_ends: list[Fd] = []  # those that started() closes
        self._stdin_keeper: Fd | None = None
        self._inputs: list[Relay] = []
        self._outputs: list[Relay] = []
        self._logger = logger
        self._closing = False
        self._closed = trio.Event()

    async def started(self) -> None:
        """Close the child's ends: the runtime has returned, the process has its own.

        :raises TimedOutError: the runtime was to send a terminal and did not.
        """
        self._close_child_ends()

    def exited(self) -> None:
        """Let readers of a terminal see its end: no process will open it again."""

    def resize(self, width: int, height: int) -> None:
        """Set the size of the terminal, in columns and rows; without one nothing happens.

        Docker's clients resize whatever they are attached to, and Go's shim lets them.
        """

    def close_stdin(self) -> None:
        """Let the process see the end of its stdin once the client has closed it too."""
        if self._stdin_keeper is not None:
            self._stdin_keeper.close()

    async def hand_over(self) -> None:
        """Let whoever is reading have what the process wrote, before the exit is told.

        Clients stop reading when they hear of it (containerd 2's close their end
        of the fifo, dockerd 20.10 does when Delete returns), and what is still
        in the fifo is lost to them.  Takes no time when nothing is, and never
        more than two seconds.

        Source: containerd pkg/cio/io_unix.go, the ``cancel`` of copyIO.
        """
        self.exited()
        with trio.move_on_after(_HAND_OVER):
            for relay in self._outputs:
                await relay.wait_taken(_PATIENCE)

    async def drain(self, timeout: float = 10) -> None:
        """Wait until what the process wrote has left the shim, at most ``timeout`` seconds."""
        self.exited()
        with trio.move_on_after(timeout) as scope:
            for relay in self._outputs:
                await relay.wait_drained()
                await relay.wait_taken(_PATIENCE)
        if scope.cancelled_caught:
            log.warning("output left behind: nobody reads it", stdout=self.spec.stdout)

    async def aclose(self) -> None:
        """Stop and close everything; at most some seconds, and whole even if cancelled."""
        if self._closing:
            await self._closed.wait()
            return
        self._closing = True
        try:
            with trio.move_on_after(_STOP, shield=True):
                for relay in (*self._inputs, *self._outputs):
                    await relay.stop()
            for fd in self._fds:
                fd.close()
            self._close_child_ends()
            if self._logger is not None:
                await self._logger.aclose()
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

    def _open_null(self) -> Fd:
        return self._for_child(Fd(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)))

    def _open_stdin(self, path: str) -> Fd:
        """Open the manager's stdin fifo, with a writer of our own that defers its end."""
        reader = self._own(fifos.open_reader(path))
        fifos.grow(reader)
        self._stdin_keeper = self._own(fifos.open_writer(path))
        return reader


class PipeStdio(Stdio):
    """Pipes between the process and fifos, files or a logging program."""

    def open(self, address: Address, uid: int, gid: int) -> None:
        """Open the manager's side and the process's side; :meth:`started` relays between them."""
        stdin = self._open_input(uid, gid)
        if self._logger is not None:
            stdout, stderr = self._logger.stdout, self._logger.stderr
            self._child_ends += [stdout, stderr]
        else:
            other = address if address.scheme == "file" else Address("path", self.spec.stderr)
            stdout = self._open_output("stdout", address, uid, gid)
            stderr = self._open_output("stderr", other, uid, gid)
        self.child_fds = (stdin.number, stdout.number, stderr.number)

    async def started(self) -> None:
        await super().started()
        # Not before: a runtime that fails says so on the process's stderr too,
        # and the manager has that from us already.
        for relay in (*self._inputs, *self._outputs):
            relay.start(self._nursery)

    def _open_input(self, uid: int, gid: int) -> Fd:
        """Return what becomes the process's stdin."""
        path = self.spec.stdin
        if not path:
            return self._open_null()
        if not fifos.is_fifo(path):
            return self._for_child(fifos.open_file(path, os.O_RDONLY))
        source = self._open_stdin(path)
        reader, writer = fifos.open_pipe(uid, gid)
        self._for_child(reader)
        self._own(writer)
        os.set_blocking(writer.number, False)
        self._inputs.append(SpliceRelay("stdin", source, writer, closes=(source, writer)))
        return reader

    def _open_output(self, name: str, address: Address, uid: int, gid: int) -> Fd:
        """Return what becomes the process's stdout or stderr."""
        if not address.path:
            return self._open_null()
        if address.scheme == "file":
            sink, is_fifo = open_log_file(address.path), False
        else:
            sink, is_fifo = open_output(address.path)
        self._own(sink)
        reader, writer = fifos.open_pipe(uid, gid)
        self._own(reader)
        self._for_child(writer)
        os.set_blocking(reader.number, False)
        kind = SpliceRelay if is_fifo else CopyRelay
        self._outputs.append(kind(name, reader, sink, closes=(reader, sink), linger=is_fifo))
        return writer


class TerminalStdio(Stdio):
    """A terminal, whose master the runtime sends us; its stderr is its stdout."""

    def __init__(self, spec: StdioSpec, nursery: trio.Nursery, logger: Logger | None) -> None:
        super().__init__(spec, nursery, logger)
        self._socket: ConsoleSocket | None = None
        self._master: Fd | None = None
        self._output: TerminalRelay | None = None
        self._input: Fd | None = None
        self._sink: Fd | None = None
        self._linger = False
        self._size: tuple[int, int] | None = None

    def open(self, address: Address, uid: int, gid: int) -> None:
        """Open everything but the master, which :meth:`started` receives."""
        null = self._open_null()
        self.child_fds = (null.number, null.number, null.number)
        if self.spec.stdin:
            self._input = self._open_stdin(self.spec.stdin)
        if self._logger is not None:
            self._sink = self._logger.stdout
            os.set_blocking(self._sink.number, False)
        elif not address.path:
            self._sink = self._own(Fd(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)))
        elif address.scheme == "file":
            self._sink = self._own(open_log_file(address.path))
        else:
            self._sink, self._linger = open_output(address.path)
            self._own(self._sink)
        self._socket = ConsoleSocket()
        self.console_socket = self._socket.path

    async def started(self) -> None:
        await super().started()
        if self._socket is None or self._sink is None:
            return
        try:
            master = self._own(await self._socket.receive_master(_CONSOLE))
        finally:
            self._close_socket()
        if self._closing:
            master.close()
            return
        self._master = master
        if self._size is not None:
            set_size(master, *self._size)
        self._output = TerminalRelay(
            "terminal", master, self._sink, closes=(self._sink,), linger=self._linger
        )
        self._outputs.append(self._output)
        self._output.start(self._nursery)
        if self._input is not None:
            relay = CopyRelay("stdin", self._input, master, closes=(self._input,), insist=True)
            self._inputs.append(relay)
            relay.start(self._nursery)
            self._nursery.start_soon(self._hang_up_after, relay, self._output)

    def exited(self) -> None:
        if self._output is not None:
            self._output.finish()

    def resize(self, width: int, height: int) -> None:
        self._size = width, height
        if self._master is not None and self._master.number >= 0:
            set_size(self._master, width, height)

    async def aclose(self) -> None:
        self._close_socket()
        await super().aclose()

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self.console_socket = None

    async def _hang_up_after(self, stdin: Relay, output: TerminalRelay) -> None:
        """Close the terminal when its input has ended, as the Go shim does.

        A terminal knows no end of input but a hang-up: a shell whose client
        has left for good gets SIGHUP, and what it wrote before is delivered.
        """
        await stdin.source_done.wait()
        output.finish()
        await output.source_done.wait()
        if self._master is not None:
            self._master.close()


async def open_stdio(
    spec: StdioSpec,
    *,
    nursery: trio.Nursery,
    reaper: Spawner,
    container_id: str,
    namespace: str,
    uid: int = 0,
    gid: int = 0,
    logger_timeout: float = LOGGER_READY,
) -> Stdio:
    """Open the stdio of a process that is about to be created.

    Relays run in ``nursery``, never raise into it, and end with ``aclose()``.
    ``uid`` and ``gid`` own the process's pipes.

    :raises NotFoundError: a fifo, or the logging program, is not there.
    :raises InvalidError: the address has an unknown scheme, or leads to no fifo or file.
    :raises TimedOutError: the logging program did not become ready.
    """
    address = parse_address(spec.stdout)
    logger = None
    if address.scheme in {"binary", "binary-v2"}:
        logger = await open_logger(
            address,
            reaper,
            container_id=container_id,
            namespace=namespace,
            uid=uid,
            gid=gid,
            timeout=logger_timeout,
        )
    kind = TerminalStdio if spec.terminal else PipeStdio
    stdio = kind(spec, nursery, logger)
    try:
        stdio.open(address, uid, gid)
    except BaseException:
        await stdio.aclose()
        raise
    return stdio
