"""A process behind a shim with its streams, in the manner of ``subprocess.Popen``.

A shim may keep its ends of the fifos open until Delete, and until then the output does not end.
So a task in the background waits for each process, and deletes it as soon as it has exited.
"""

from __future__ import annotations

import math
import os
import select
import time
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from shim.errors import NotFoundError, ShimError, TimedOutError
from shimctl.ending import end
from shimctl.failures import ExitStatusError, RunTimedOutError
from shimctl.pipes import CHUNK, open_streams
from shimctl.values import Finished

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from shimctl.backend import Backend
    from shimctl.pipes import Streams
    from shimctl.task import Task
    from shimctl.values import Exited, Stdio

_ENDING = 30  # s to kill and delete the process at the end of its block
_LAST_OUTPUT = 10  # s from the deletion to the end of the output


class Process:
    """A running process.  ``stdin``, ``stdout`` and ``stderr`` are its streams.

    Its block kills and deletes it at the end, if it still runs.
    """

    def __init__(self, task: Task, pid: int, streams: Streams) -> None:
        self.task = task
        self.pid = pid
        self.stdin, self.stdout, self.stderr = streams.stdin, streams.stdout, streams.stderr
        self.stdin.close_io, self.stdin.dup_done = self._close_io, self.dup_done
        self._backend = task.shim.backend
        self._exited: Exited | None = None
        self._error: ShimError | None = None
        self._done = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __repr__(self) -> str:
        state = f"exited {self._exited.exit_status}" if self._exited else "running"
        return f"<Process {self.pid} of {self.task!r}, {state}>"

    async def wait(self, *, timeout: float | None = None) -> Exited:
        """Wait until the process has exited; without a ``timeout`` the wait has no limit.

        :raises TimedOutError: it still runs after ``timeout`` seconds.
        :raises UnavailableError: the shim exited before the process.
        """
        if self._exited is None and self._error is None:
            fd = self.dup_done()
            try:
                if not await self._backend.wait_readable(fd, timeout):
                    raise TimedOutError(f"{self.task!r} still runs after {timeout:g} s")
            finally:
                self._backend.closing(fd)
                os.close(fd)
        if self._exited is None:
            raise self._error or NotFoundError(f"the block of {self.task!r} has ended")
        return self._exited

    async def kill(self, signal: int | str = "KILL") -> None:
        """Send a signal to the process; do nothing if it has exited."""
        if self._exited is None:
            with suppress(NotFoundError):
                await self.task.kill(signal)

    async def communicate(self, input: bytes = b"", *, timeout: float | None = None) -> Finished:  # noqa: A002 - as subprocess names it
        """Write ``input`` to stdin and close it; return the output and the exit status.

        :raises RunTimedOutError: the process still runs after ``timeout`` seconds; it is
            killed, and the error has its output.
        :raises UnavailableError: the shim exited before the process.
        """
        exchange = _Exchange(self, input)
        try:
            if not await self._exchange(exchange, timeout):
                assert timeout is not None
                with suppress(ShimError):
                    await self.task.kill("KILL", everyone=not self.task.exec_id)
                await self._exchange(exchange, _LAST_OUTPUT)
                raise RunTimedOutError(self.task.id, timeout, exchange.out, exchange.err)
            exited = await self.wait()
            return Finished(exited.exit_status, exchange.out, exchange.err)
        finally:
            self._backend.closing(exchange.fileno())
            exchange.close()

    async def _exchange(self, exchange: _Exchange, timeout: float | None) -> bool:
        """Move bytes until the output has ended; return False if the time is over."""
        deadline = None if timeout is None else time.monotonic() + timeout
        fd = exchange.fileno()
        while not exchange.ended:
            left = math.inf if deadline is None else deadline - time.monotonic()
            if exchange.last is not None:
                left = exchange.last - time.monotonic()
            if left <= 0:
                return exchange.last is not None
            left = min(left, exchange.open_stdin())
            if await self._backend.wait_readable(fd, None if left == math.inf else left):
                exchange.move()
            if exchange.written:
                await self.stdin.close()
        return True

    async def watch(self) -> None:
        """Wait until the process exits; then delete it."""
        try:
            self._exited = await self.task.wait()
            with suppress(ShimError):
                await self.task.delete()
        except ShimError as exc:
            self._error = exc
        finally:
            with suppress(OSError):  # the block has ended
                os.eventfd_write(self._done, 1)

    def dup_done(self) -> int:
        """Return an fd that is readable once the process was deleted; the caller closes it.

        Each wait needs another fd: an event loop takes one wait for each.
        """
        return os.dup(self._done)

    async def _close_io(self) -> None:
        with suppress(NotFoundError):  # it has exited
            await self.task.close_io()

    def close(self) -> None:
        """Release the resources of the process in this program; its block does this."""
        os.close(self._done)
        self._done = -1


class _Exchange:
    """The bytes on their way between a process and its caller, and whether all arrived."""

    def __init__(self, process: Process, data: bytes) -> None:
        self._stdin, self._rest = process.stdin, memoryview(data)
        self.written = False
        self.last: float | None = None  # when to stop reading, once the process is deleted
        self._captured: list[tuple[int, bytearray]] = []
        self._epoll = select.epoll()
        for stream in (process.stdout, process.stderr):
            fd = -1 if stream.closed else stream.fileno()
            self._captured.append((fd, bytearray(stream.take_buffer())))
            if fd >= 0:
                self._epoll.register(fd, select.EPOLLIN)
        self._open = {fd: captured for fd, captured in self._captured if fd >= 0}
        self._done = process.dup_done()
        self._epoll.register(self._done, select.EPOLLIN)
        self._writing = False

    def fileno(self) -> int:
        return self._epoll.fileno()

    def close(self) -> None:
        os.close(self._done)
        self._epoll.close()

    @property
    def out(self) -> bytes:
        return bytes(self._captured[0][1])

    @property
    def err(self) -> bytes:
        return bytes(self._captured[1][1])

    @property
    def ended(self) -> bool:
        """Whether the process was deleted and its output has ended."""
        return self.last is not None and not self._open

    def open_stdin(self) -> float:
        """Open stdin if the shim has opened its end, else return the seconds to the next attempt.

        Returns infinity if there is no further one.
        """
        if self._writing or self._stdin.closed or self.last is not None:
            return math.inf
        if (pause := self._stdin.open()) is not None:
            return pause
        if self._stdin.opened:
            self._epoll.register(self._stdin.fileno(), select.EPOLLOUT)
            self._writing = True
        else:
            self.written = True  # the process does not read it
        return math.inf

    def move(self) -> None:
        """Read and write as much as does not block."""
        for fd, _ in self._epoll.poll(0):
            if fd == self._done:
                self._epoll.unregister(fd)
                self.last = time.monotonic() + _LAST_OUTPUT
            elif (captured := self._open.get(fd)) is not None:
                with suppress(BlockingIOError):
                    data = os.read(fd, CHUNK)
                    captured += data
                    if not data:
                        self._epoll.unregister(fd)
                        del self._open[fd]
            else:
                try:
                    self._rest = self._rest[os.write(fd, self._rest) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:  # the process does not read the rest
                    self._rest = self._rest[:0]
                if not self._rest:
                    self._epoll.unregister(fd)
                    self.written = True


@asynccontextmanager
async def open_process(
    backend: Backend,
    create: Callable[[Stdio], Awaitable[Task]],
    directory: Path,
    *,
    stdin: bool = False,
    terminal: bool = False,
) -> AsyncIterator[Process]:
    """Create a process with fifos in ``directory``, start it, and end it after the block."""
    with open_streams(backend, directory, stdin=stdin, terminal=terminal) as streams:
        task = await create(streams.stdio)
        try:
            pid = await task.start()
        except BaseException:
            await backend.run_shielded(partial(_end, task), _ENDING)
            raise
        process = Process(task, pid, streams)
        try:
            async with backend.beside(process.watch):
                try:
                    yield process
                finally:
                    await backend.run_shielded(partial(_end, task), _ENDING)
        finally:
            process.close()


async def _end(task: Task) -> None:
    with suppress(ShimError):
        await end(task)


def check_finished(finished: Finished, command: str) -> Finished:
    """Return ``finished``.

    :raises ExitStatusError: its exit status is not 0.
    """
    if finished.exit_status:
        raise ExitStatusError(command, finished)
    return finished
