"""A process's stdin, stdout and stderr: one object owns all of their fds.

Open it before the runtime runs, give :attr:`Stdio.child_fds` and
:attr:`Stdio.console_socket` to the runtime, then call :meth:`Stdio.started`,
:meth:`Stdio.exited` when the process has ended, :meth:`Stdio.drain` before it
is deleted, and :meth:`Stdio.aclose` whatever happened.

Source: containerd-shim-runc-v2 process/io.go.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shim.linux import fifos
from shim.outputaddress import Address, parse_address
from shim.stdio.relay import Relay, SpliceRelay
from shim.stdio.sinks import (
    LOGGER_READY,
    Child,
    Spawner,
    open_fifo,
    open_logger,
)
from shim.stdio.streams import Stdio, StdioSpec
from shim.stdio.terminal import TerminalStdio

if TYPE_CHECKING:
    import trio

    from shim.linux.fifos import Fd
    from shim.stdio.spool import Room

__all__ = ["Child", "Spawner", "Stdio", "StdioSpec", "open_stdio"]


class PipeStdio(Stdio):
    """Pipes between the process and fifos, files or a logging program."""

    async def open(self, address: Address, uid: int, gid: int) -> None:
        stdin = await self._open_input(uid, gid)
        if self._logger is not None:
            stdout, stderr = self._logger.stdout, self._logger.stderr
            self._child_ends += [stdout, stderr]
        else:
            other = address if address.scheme == "file" else Address("path", self.spec.stderr)
            stdout = self._open_output("stdout", address, uid, gid)
            stderr = self._open_output("stderr", other, uid, gid)
            await self._open_files(create=address.scheme == "file")
        self.child_fds = (stdin.number, stdout.number, stderr.number)

    async def started(self) -> None:
        await super().started()
        # Not before: a runtime that fails says so on the process's stderr too,
        # and the manager has that from us already.
        for relay in (*self._inputs, *self._outputs):
            relay.start(self._nursery)
        self._start_helpers()

    async def _open_input(self, uid: int, gid: int) -> Fd:
        """Return what becomes the process's stdin."""
        path = self.spec.stdin
        if not path:
            return self._open_null()
        is_fifo = fifos.is_fifo(path)
        source = self._open_stdin(path) if is_fifo else None
        reader, writer = fifos.open_pipe(uid, gid)
        self._for_child(reader)
        self._own(writer)
        if source is not None:
            os.set_blocking(writer.number, False)
            self._inputs.append(SpliceRelay("stdin", source, writer, closes=(source, writer)))
            return reader
        from shim.stdio import filehelper  # only for a container that has such a stream

        # A process that has the file itself could change its mode.
        self._helpers.append(
            await filehelper.open_reader(path, writer, self._spawner, timeout=filehelper.OPEN)
        )
        return reader

    def _open_output(self, name: str, address: Address, uid: int, gid: int) -> Fd:
        """Return what becomes the process's stdout or stderr."""
        if not address.path:
            return self._open_null()
        fifo = open_fifo(address.path) if address.scheme == "path" else None
        reader, writer = fifos.open_pipe(uid, gid)
        self._own(reader)
        self._for_child(writer)
        os.set_blocking(reader.number, False)
        if fifo is not None:
            self._outputs.append(self._relay_output(name, reader, self._own(fifo)))
        else:
            source = reader if self._room is None else self._relay_to_pipe(name, reader)
            self._files.setdefault(address.path, []).append(source)
        return writer

    def _relay_output(self, name: str, source: Fd, sink: Fd) -> Relay:
        closes = (source, sink)
        if self._room is None:
            return SpliceRelay(name, source, sink, closes=closes, linger=True)
        from shim.stdio.patient import PatientRelay  # not for who does not ask for it

        return PatientRelay(name, source, sink, closes=closes, room=self._room)

    def _relay_to_pipe(self, name: str, source: Fd) -> Fd:
        """Put a pipe between the process and a file: a full pipe is a reader that is away."""
        reader, writer = self._open_file_pipe()
        self._outputs.append(self._relay_output(name, source, writer))
        return reader


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
    room: Room | None = None,
    directory: str | None = None,
) -> Stdio:
    """Open the stdio of a process that is about to be created.

    Relays run in ``nursery``, never raise into it, and end with ``aclose()``.
    ``uid`` and ``gid`` own the process's pipes.  ``directory`` is the working
    directory of a logging program.  ``room`` is where output goes
    that nobody takes from a fifo; without it the process waits for a reader.

    :raises NotFoundError: a fifo, or the logging program, is not there.
    :raises InvalidError: the address has an unknown scheme, or leads to no fifo or file.
    :raises TimedOutError: the logging program did not become ready, or the file
        system of a file does not respond.
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
            directory=directory,
        )
    kind = TerminalStdio if spec.terminal else PipeStdio
    stdio = kind(spec, nursery, reaper, logger, room)
    try:
        await stdio.open(address, uid, gid)
    except BaseException:
        await stdio.aclose()
        raise
    return stdio
