"""The fifos between the caller and a process behind a shim, as streams.

The library makes the fifos and opens its ends of the output before the shim opens the other
ones.  A read waits for the first writer: it does not take the absence of a writer for the end.

Source: fifo(7) for an open without a peer; poll(2), which reports no end before the first
writer has come; :mod:`shimctl.stdinfifo` for stdin.
"""

from __future__ import annotations

import os
import select
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from shim.errors import WrongStateError
from shim.linux.modes import make_fifo
from shimctl.stdinfifo import open_writer, pauses
from shimctl.values import Stdio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from shimctl.backend import Backend

CHUNK = 64 * 1024  # bytes, the size of a fifo
_LONGEST_LINE = 16 << 20  # bytes
_UNREAD = "cannot write to stdin: the process has closed it, or has exited"


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
    """The output of a process on its stdout or stderr.  Only one task may read at a time."""

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
    """The stdin of a process.  Only one task may write at a time.

    Our end is opened at the first use, after the shim has opened its own.  ``dup_done``
    returns an fd that is readable once the process was deleted; the caller closes it.
    """

    def __init__(self, backend: Backend, path: str = "") -> None:
        super().__init__(backend)
        self._path, self._closed = path, not path
        self._pauses = pauses()
        self._waiting: set[int] = set()
        self.close_io: Callable[[], Awaitable[None]] | None = None
        self.dup_done = _never

    @property
    def closed(self) -> bool:
        """Whether it was closed, or the process has no stdin."""
        return self._closed

    @property
    def opened(self) -> bool:
        """Whether our end is open now."""
        return self._fd >= 0

    def detach(self) -> None:
        """Close our end, without a wait for the shim."""
        self._closed = True
        super().detach()
        for fd in list(self._waiting):
            self._backend.closing(fd)

    def open(self) -> float | None:
        """Open our end if the shim has opened its own; else return the seconds to wait.

        Returns None if it is open, or if the shim does not open it.
        """
        if not self._closed and self._fd < 0:
            with suppress(WrongStateError):  # the process was deleted with its fifos
                if (fd := open_writer(self._path)) is None:
                    return next(self._pauses, None)
                self._fd = fd
        return None

    async def write(self, data: bytes) -> None:
        """Write all of ``data``; wait while the fifo is full.

        :raises WrongStateError: stdin is closed here, or the process has closed it or exited.
        """
        await self._wait_open()
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self.fileno(), rest) :]
            except BlockingIOError:
                await self._wait_room()
            except BrokenPipeError:
                raise WrongStateError(_UNREAD) from None

    async def close(self) -> None:
        """Close stdin: the process reads EOF after the data.  May be repeated.

        This waits until the shim has opened its end.  Otherwise the data would be lost.
        """
        if not self._closed:
            with suppress(WrongStateError):  # no process reads it
                await self._wait_open()
            self.detach()
            if self.close_io is not None:
                await self.close_io()

    async def _wait_open(self) -> None:
        if self._closed or self.opened:
            return
        with self._done() as done:
            while (pause := self.open()) is not None:
                if await self._backend.wait_readable(done, pause):
                    break
        if not self._closed and self._fd < 0:
            raise WrongStateError(_UNREAD)

    async def _wait_room(self) -> None:
        """Wait until the fifo has room.

        :raises WrongStateError: the process was deleted.
        """
        with self._done() as done, select.epoll() as either:
            either.register(done, select.EPOLLIN)
            either.register(self.fileno(), select.EPOLLOUT)
            self._waiting.add(either.fileno())
            try:
                await self._backend.wait_readable(either.fileno())
            finally:
                self._waiting.discard(either.fileno())
                self._backend.closing(either.fileno())
            if any(fd == done for fd, _ in either.poll(0)):
                raise WrongStateError(_UNREAD)

    @contextmanager
    def _done(self) -> Iterator[int]:
        fd = self.dup_done()
        try:
            yield fd
        finally:
            self._backend.closing(fd)
            os.close(fd)


def _never() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


class Streams:
    """The streams of one process; ``stdio`` has the paths for the shim."""

    def __init__(self, stdio: Stdio, stdin: Input, stdout: Output, stderr: Output) -> None:
        self.stdio = stdio
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr


@contextmanager
def open_streams(
    backend: Backend, directory: Path, *, stdin: bool = False, terminal: bool = False
) -> Iterator[Streams]:
    """Make the fifos in ``directory``, open our ends of the output; remove all after the block.

    A process with a ``terminal`` has no stderr.
    """
    with ExitStack() as stack:

        def fifo(name: str) -> str:
            path = directory / name
            make_fifo(path)
            stack.callback(path.unlink, missing_ok=True)
            return str(path)

        def output(path: str) -> Output:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            stream = Output(backend, os.open(path, flags) if path else -1)
            stack.callback(stream.detach)
            return stream

        paths = Stdio(
            fifo("stdin") if stdin else "",
            fifo("stdout"),
            "" if terminal else fifo("stderr"),
            terminal,
        )
        to = Input(backend, paths.stdin)
        stack.callback(to.detach)
        yield Streams(paths, to, output(paths.stdout), output(paths.stderr))
