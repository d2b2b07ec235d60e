"""The stdio of a process that has a terminal: one stream out, one in.

Source: containerd-shim-runc-v2 runc/platform.go.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shim.linux.fifos import Fd
from shim.stdio.console import CONSOLE, ConsoleSocket, set_size, winsize
from shim.stdio.copying import CopyRelay, TerminalRelay
from shim.stdio.sinks import open_fifo
from shim.stdio.streams import Stdio

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from shim.outputaddress import Address
    from shim.stdio.keptoverflow import Stages
    from shim.stdio.relay import Relay
    from shim.stdio.spool import Overflow

# Seconds to wait for the terminal after the runtime command has returned.
_CONSOLE = 10.0


class TerminalStdio(Stdio):
    """A terminal whose master the runtime sends; stdout and stderr are one stream."""

    _socket: ConsoleSocket | None = None
    _master: Fd | None = None
    _output: TerminalRelay | None = None
    _input: Fd | None = None
    _sink: Fd | None = None
    _buffer: Fd | None = None  # None: the relays copy
    _stages: Stages | None = None
    _is_fifo = False
    _console_path = ""
    _size = b""  # set before there is a terminal

    async def open(self, address: Address, uid: int, gid: int) -> None:
        """Open all fds but the master, which :meth:`started` receives."""
        null = self._open_null()
        self.child_fds = (null.number, null.number, null.number)
        if self.spec.stdin:
            self._input = self._open_stdin(self.spec.stdin)
        if self._logger is not None:
            self._sink = self._logger.stdout
            os.set_blocking(self._sink.number, False)
        elif not address.path:
            self._sink = self._own(Fd(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)))
        elif address.scheme == "path" and (fifo := open_fifo(address.path)) is not None:
            self._sink = self._own(fifo)
            self._is_fifo = True
        else:
            reader, self._sink = self._open_file_pipe()
            self._files[address.path] = [reader]
            await self._open_files(create=address.scheme == "file")
        self._set_socket(ConsoleSocket())
        if self._kept.is_active:
            self._keep(self._sink)

    def _keep(self, sink: Fd) -> None:
        from shim.stdio import terminalsplice  # loaded only by a daemon that may be replaced

        if self._socket is not None:
            self._kept.put({CONSOLE: self._socket.fileno()})
        self._buffer = self._own(terminalsplice.open_buffer())
        self._kept.hold({"buffer": self._buffer})
        self._stages = self._open_stages("terminal")
        if self._is_fifo:
            self._kept.hold_fifo("stdout", sink)
        else:
            self._kept.hold({"stdout": sink})
        if self._logger is not None:
            self._kept.hold({"logger-stderr": self._logger.stderr})

    def state(self) -> dict[str, Any]:
        return super().state() | {"console": self._console_path, "is_fifo": self._is_fifo}

    def restore(self, state: Mapping[str, Any]) -> None:
        kept = self._kept
        if self.spec.stdin:
            self._input = self._take_stdin()
        self._is_fifo = state["is_fifo"]
        self._sink = kept.take_fifo("stdout") if self._is_fifo else kept.take("stdout")
        self._buffer = kept.take("buffer")
        self._master = kept.take("master")
        self._stages = self._take_stages("terminal")
        for fd in (self._sink, self._buffer, self._master):
            if fd is not None:
                self._own(fd)
        self._restore_files(state)
        self._restore_logger(state, self._sink, kept.take("logger-stderr"))
        if (listener := kept.take_number(CONSOLE)) >= 0:
            self._set_socket(ConsoleSocket(listener, state["console"]))

    async def started(self) -> None:
        await super().started()
        if self._socket is not None:
            try:
                await self._receive_master(self._socket)
            finally:
                self._close_socket()
        if self._sink is not None and not self._closing:
            self._relay(self._sink)

    async def _receive_master(self, console: ConsoleSocket) -> None:
        """Take the terminal from the runtime, unless a daemon that was killed did."""
        if self._master is not None:
            return
        master = self._own(await console.receive_master(_CONSOLE))
        if self._closing:
            master.close()
            return
        self._kept.hold({"master": master})
        self._master = master
        if self._size:
            set_size(master, self._size)

    def _relay(self, sink: Fd) -> None:
        master = self._master or Fd(-1)  # closed: only unread output is left
        self._output = self._relay_output(master, sink)
        self._output.resume()
        self._outputs.append(self._output)
        self._output.start(self._nursery)
        self._start_helpers()
        if self._input is None or self._master is None:
            return
        relay = self._relay_input(self._input, self._master)
        self._inputs.append(relay)
        relay.start(self._nursery)
        self._nursery.start_soon(self._hang_up_after, relay, self._output)

    def _relay_output(self, master: Fd, sink: Fd) -> TerminalRelay:
        closes, linger = (sink,), self._is_fifo
        if self._overflow is not None and (self._is_fifo or self._file_states):
            return self._overflow_relay(master, sink, self._overflow)
        if self._buffer is None:
            return TerminalRelay("terminal", master, sink, closes=closes, linger=linger)
        from shim.stdio.terminalsplice import SpliceTerminalRelay

        relay = SpliceTerminalRelay("terminal", master, sink, closes=closes, linger=linger)
        relay.pipe = self._buffer
        return relay

    def _overflow_relay(self, master: Fd, sink: Fd, overflow: Overflow) -> TerminalRelay:
        if self._stages is None:
            from shim.stdio.overflow import OverflowTerminalRelay  # loaded only for spool and drop

            return OverflowTerminalRelay(
                "terminal", master, sink, closes=(sink,), overflow=overflow
            )
        from shim.stdio.keptoverflow import KeptOverflowTerminalRelay

        return KeptOverflowTerminalRelay(
            "terminal", master, sink, self._stages, closes=(sink,), overflow=overflow
        )

    def _relay_input(self, source: Fd, master: Fd) -> CopyRelay:
        kind = CopyRelay
        if self._buffer is not None:
            from shim.stdio.terminalsplice import SpliceInputRelay

            kind = SpliceInputRelay
        return kind("stdin", source, master, closes=(source,), retry_hang_up=True)

    def exited(self) -> None:
        if self._output is not None:
            self._output.finish()

    def resize(self, width: int, height: int) -> None:
        self._size = winsize(width, height)
        if self._master is not None and self._master.number >= 0:
            set_size(self._master, self._size)

    async def aclose(self) -> None:
        self._close_socket()
        await super().aclose()

    def _set_socket(self, console: ConsoleSocket) -> None:
        self._socket = console
        self.console_socket = self._console_path = console.path

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._kept.drop(CONSOLE)
        self._socket = None
        self.console_socket = None

    async def _hang_up_after(self, stdin: Relay, output: TerminalRelay) -> None:
        """Close the terminal when its input has ended, as the Go shim does.

        A hang-up is the only end of input that a terminal has.  A shell whose client
        has closed its stdin gets SIGHUP; its earlier output is delivered.
        """
        await stdin.source_done.wait()
        output.finish()
        await output.source_done.wait()
        if self._master is not None:
            self._master.close()
