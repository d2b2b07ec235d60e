"""The stdio of a process that has no terminal: one pipe for each of its three streams.

Source: containerd-shim-runc-v2 process/io.go.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shim.linux import fifos
from shim.linux.fifos import Fd
from shim.outputaddress import Address
from shim.stdio.relay import Relay, SpliceRelay
from shim.stdio.sinks import open_fifo
from shim.stdio.streams import Stdio

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from shim.stdio.keptoverflow import Stages


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

    def restore(self, state: Mapping[str, Any]) -> None:
        source, writer = self._take_stdin(), self._kept.take("stdin-pipe")
        if writer is not None:
            self._relay_input(source, self._own(writer))
        for name in ("stdout", "stderr"):
            sink = self._kept.take_fifo(name) or self._kept.take(f"{name}-file")
            reader = self._kept.take(f"{name}-pipe")
            if reader is not None:
                self._own(reader)
            if sink is not None:
                relay = self._relay_output(
                    name, reader or Fd(-1), self._own(sink), self._take_stages(name)
                )
                relay.resume()
                self._outputs.append(relay)
        self._restore_files(state)
        self._restore_logger(state)

    async def started(self) -> None:
        await super().started()
        # Not before: a runtime that fails also writes its error to the process's
        # stderr, and the reply to the manager has that error already.
        for relay in (*self._inputs, *self._outputs):
            relay.start(self._nursery)
        self._start_helpers()

    async def _open_input(self, uid: int, gid: int) -> Fd:
        """Return the fd that becomes the process's stdin."""
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
            self._kept.hold({"stdin-pipe": writer})
            self._relay_input(source, writer)
            return reader
        from shim.stdio import filehelper  # loaded only for a container with such a stream

        # A process that had an fd of the file could change its mode.
        self._helpers.append(
            await filehelper.open_reader(
                path,
                writer,
                self._reaper,
                timeout=filehelper.OPEN,
                kept=self._kept,
                role=self._add_file_state(path, writes=False, create=False),
            )
        )
        return reader

    def _relay_input(self, source: Fd, writer: Fd) -> None:
        self._inputs.append(SpliceRelay("stdin", source, writer, closes=(source, writer)))

    def _open_output(self, name: str, address: Address, uid: int, gid: int) -> Fd:
        """Return the fd that becomes the process's stdout or stderr."""
        if not address.path:
            return self._open_null()
        fifo = open_fifo(address.path) if address.scheme == "path" else None
        reader, writer = fifos.open_pipe(uid, gid)
        self._own(reader)
        self._for_child(writer)
        os.set_blocking(reader.number, False)
        if fifo is not None:
            self._kept.hold_fifo(name, fifo, {f"{name}-pipe": reader})
            self._outputs.append(
                self._relay_output(name, reader, self._own(fifo), self._open_stages(name))
            )
        else:
            source = reader if self._overflow is None else self._relay_to_pipe(name, reader)
            self._files.setdefault(address.path, []).append(source)
        return writer

    def _relay_output(self, name: str, source: Fd, sink: Fd, stages: Stages | None) -> Relay:
        closes = (source, sink)
        if self._overflow is None:
            return SpliceRelay(name, source, sink, closes=closes, linger=True)
        if stages is not None:
            from shim.stdio.keptoverflow import KeptOverflowPipeRelay

            return KeptOverflowPipeRelay(
                name, source, sink, stages, closes=closes, overflow=self._overflow
            )
        from shim.stdio.overflow import OverflowPipeRelay  # loaded only for spool and drop

        return OverflowPipeRelay(name, source, sink, closes=closes, overflow=self._overflow)

    def _relay_to_pipe(self, name: str, source: Fd) -> Fd:
        """Relay ``source`` to a new pipe, and return the read end for the file's helper.

        A file that does not respond lets the pipe fill: the relay treats that like
        a reader that is away.
        """
        reader, writer = self._open_file_pipe()
        self._kept.hold({f"{name}-pipe": source, f"{name}-file": writer})
        self._outputs.append(self._relay_output(name, source, writer, self._open_stages(name)))
        return reader
