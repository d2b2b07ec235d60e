"""The fifos between the caller and a process behind a shim, as streams.

The library makes the fifos and opens its ends before the shim opens the other ones.  A read
waits for the first writer: it does not take the absence of a writer for the end.

Source: fifo(7) for an open without a peer; poll(2), which reports no end before the first
writer has come.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from shim.errors import WrongStateError
from shim.linux.modes import make_fifo
from shimctl.values import Stdio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from shimctl.backend import Backend

CHUNK = 64 * 1024  # bytes, what a fifo holds
_LONGEST_LINE = 16 << 20  # bytes


class _End:
    """Our end of one fifo; closed at the end of the block that opened it."""

    def __init__(self, backend: Backend, fd: int = -1) -> None:
        self._backend, self._fd = backend, fd

    def fileno(self) -> int:
        """Return the file descriptor.

        :raises WrongStateError: it is closed, or the process has no such stream.
        """
        if self._fd < 0:
            raise WrongStateError("this stream of the process is closed, or was not opened")
        return self._fd

    @property
    def closed(self) -> bool:
        """Whether it is closed, or the process has no such stream."""
        return self._fd < 0

    def detach(self) -> None:
        """Close our end."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._backend.closing(fd)
            os.close(fd)


class Output(_End):
    """What a process writes to its stdout or stderr.  Only one task may read at a time."""

    _buffer = b""

    async def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at most ``size``; or, without a size, all until the end.

        Returns ``b""`` at the end.
        """
        if size < 0:
            pieces = [await self.read(CHUNK)]
            while pieces[-1]:
                pieces.append(await self.read(CHUNK))
            return b"".join(pieces)
        if not self._buffer:
            self._buffer = await self._receive()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    async def readline(self) -> bytes:
        """Return the next line with its newline; ``b""`` at the end.

        A line of more than 16 MiB is returned in parts.
        """
        searched = 0
        while (end := self._buffer.find(b"\n", searched) + 1) == 0:
            searched = len(self._buffer)
            data = await self._receive()
            self._buffer += data
            if not data or searched > _LONGEST_LINE:
                end = len(self._buffer)
                break
        line, self._buffer = self._buffer[:end], self._buffer[end:]
        return line

    def take_buffer(self) -> bytes:
        """Return the bytes that were received and not yet read."""
        data, self._buffer = self._buffer, b""
        return data

    def __aiter__(self) -> Output:
        return self

    async def __anext__(self) -> bytes:
        if line := await self.readline():
            return line
        raise StopAsyncIteration

    async def _receive(self) -> bytes:
        while True:
            await self._backend.wait_readable(self.fileno())
            try:
                return os.read(self.fileno(), CHUNK)
            except BlockingIOError:
                continue


class Input(_End):
    """The stdin of a process."""

    def __init__(self, backend: Backend, fd: int = -1) -> None:
        super().__init__(backend, fd)
        self.close_io: Callable[[], Awaitable[None]] | None = None

    async def write(self, data: bytes) -> None:
        """Write all of ``data``; wait while the fifo is full."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self.fileno(), rest) :]
            except BlockingIOError:
                await self._backend.wait_writable(self.fileno())

    async def close(self) -> None:
        """Close stdin: the process reads EOF after the data.  May be repeated."""
        if not self.closed:
            self.detach()
            if self.close_io is not None:
                await self.close_io()


class Streams:
    """The streams of one process; ``stdio`` has the paths for the shim."""

    def __init__(self, stdio: Stdio, stdin: Input, stdout: Output, stderr: Output) -> None:
        self.stdio = stdio
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr


@contextmanager
def open_streams(
    backend: Backend, directory: Path, *, stdin: bool = False, terminal: bool = False
) -> Iterator[Streams]:
    """Make the fifos in ``directory`` and open our ends; remove both at the end of the block.

    A process with a ``terminal`` has no stderr.
    """
    with ExitStack() as stack:

        def fifo(name: str, flags: int) -> tuple[str, int]:
            path = directory / name
            make_fifo(path)
            stack.callback(path.unlink, missing_ok=True)
            return str(path), os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)

        out_path, fd = fifo("stdout", os.O_RDONLY)
        stdout = Output(backend, fd)
        stack.callback(stdout.detach)
        err_path, fd = ("", -1) if terminal else fifo("stderr", os.O_RDONLY)
        stderr = Output(backend, fd)
        stack.callback(stderr.detach)
        # O_WRONLY would fail until the shim has opened its end.
        in_path, fd = fifo("stdin", os.O_RDWR) if stdin else ("", -1)
        to = Input(backend, fd)
        stack.callback(to.detach)
        yield Streams(Stdio(in_path, out_path, err_path, terminal), to, stdout, stderr)
