"""Relay between our own stdin, stdout and stderr and the fifos of a process behind a shim.

We create the fifos, the shim opens the other ends.  A shim may keep both ends of
each fifo open until ``Delete``, so the end of the output does not mean that the
process has exited: call ``Wait``, then ``Delete``.

Source: fifo(7) for an open without a peer; :mod:`shimctl.stdinfifo` for stdin.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack, aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from shim.errors import WrongStateError
from shim.linux.modes import make_fifo
from shimctl.stdinfifo import open_writer, pauses
from shimctl.values import Stdio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
    from pathlib import Path

    from shimctl.attach.keys import KeyFilter

CHUNK = 64 * 1024  # bytes, the size of a fifo
_PIECE = 4096  # bytes that a writable pipe accepts without blocking


@dataclass(slots=True)
class Pipes:
    """Our ends of a process's fifos; the block that opened them closes them.

    ``stderr`` is None with a terminal.  ``stdio.stdin`` is empty for a process without
    input; our end of it is opened at the first use.
    The block removes the fifos at its end unless ``keep`` is set.
    """

    stdio: Stdio
    stdout: int
    stderr: int | None
    keep: bool = False
    _stdin: int | None = None
    _input_ended: bool = False
    # Several clients may type; only one task at a time can wait for room in stdin.
    _typing: trio.Lock = field(default_factory=trio.Lock)

    def close_stdin(self) -> None:
        """Close our end of stdin, for good, without a wait for the shim."""
        self._input_ended = True
        fd, self._stdin = self._stdin, None
        if fd is not None:
            trio.lowlevel.notify_closing(fd)
            os.close(fd)

    async def end_stdin(self) -> None:
        """Close our end of stdin after all input; the process sees EOF after ``CloseIO``, too.

        This waits for the shim to open its end, also without input: a shim whose end
        opens after ``CloseIO`` might wait in open(2) for a writer.
        """
        async with self._typing:
            await self._open_stdin()
            self.close_stdin()

    async def write_stdin(self, data: bytes) -> None:
        """Write input to the process, after any earlier input.

        Do nothing once stdin is closed at either end.
        """
        async with self._typing:
            if (fd := await self._open_stdin()) is not None:
                with suppress(BrokenPipeError, trio.ClosedResourceError):
                    await write(fd, data)

    async def _open_stdin(self) -> int | None:
        """Return our end of stdin, once the shim has opened its own; None if it does not."""
        if self._stdin is None and self.stdio.stdin and not self._input_ended:
            try:
                for pause in pauses():
                    self._stdin = open_writer(self.stdio.stdin)
                    if self._stdin is not None:
                        return self._stdin
                    await trio.sleep(pause)
                    if self._input_ended:
                        break
            except WrongStateError:
                pass  # the process was deleted with its fifos
            self._input_ended = True
        return self._stdin


@contextmanager
def open_pipes(directory: Path, *, stdin: bool, terminal: bool) -> Iterator[Pipes]:
    """Create the fifos in ``directory``; open our ends of the output before the shim's."""
    with ExitStack() as stack:

        def made_fifo(name: str) -> str:
            path = directory / name
            make_fifo(path)
            made.append(path)
            return str(path)

        def opened(name: str) -> tuple[str, int]:
            path = made_fifo(name)
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            return path, fd

        def unlink() -> None:
            if pipes is None or not pipes.keep:
                for path in made:
                    path.unlink(missing_ok=True)

        pipes: Pipes | None = None
        made: list[Path] = []
        stack.callback(unlink)
        out_path, out = opened("stdout")
        err_path, err = "", None
        if not terminal:
            err_path, err = opened("stderr")
        in_path = made_fifo("stdin") if stdin else ""
        pipes = Pipes(Stdio(in_path, out_path, err_path, terminal), out, err)
        stack.callback(pipes.close_stdin)
        yield pipes


async def copy_out(
    source: int,
    target: int,
    broken: Callable[[], Awaitable[object]],
    copied: Callable[[bytes], object] | None = None,
) -> None:
    """Copy a process's output to our own until every writer has closed it.

    ``copied`` gets all bytes first.  Once our output has no reader, the rest is read
    and discarded, because the process must not block; ``broken`` is called each time
    more bytes arrive.
    """
    alive = True
    while True:
        await trio.lowlevel.wait_readable(source)
        try:
            data = os.read(source, CHUNK)
        except BlockingIOError:
            continue
        if not data:
            return
        if copied is not None:
            copied(data)
        if alive:
            try:
                await write(target, data)
            except BrokenPipeError:
                alive = False
        if not alive:
            await broken()


async def drain(source: int, target: int, copied: Callable[[bytes], object] | None = None) -> None:
    """Copy the bytes that are readable now, without waiting for more."""
    with suppress(BlockingIOError, BrokenPipeError):
        while data := os.read(source, CHUNK):
            if copied is not None:
                copied(data)
            await write(target, data)


async def read_in(source: int, keys: KeyFilter) -> AsyncGenerator[bytes, None]:
    """Give our input in pieces, without the detach keys, until its end or the keys."""
    pollable = _pollable(source)
    while not keys.found:
        if pollable:
            await trio.lowlevel.wait_readable(source)
        else:
            await trio.lowlevel.checkpoint()
        try:
            data = os.read(source, CHUNK)
        except BlockingIOError:
            continue
        except OSError:
            return  # the terminal was closed, or we are in the background
        if not data:
            return
        if passed := keys.feed(data):
            yield passed


async def copy_in(
    source: int,
    pipes: Pipes,
    keys: KeyFilter,
    *,
    typed: Callable[[], Awaitable[object]],
    closed: Callable[[], Awaitable[object]],
) -> None:
    """Copy our input to a process; at the end of the input close it and call ``closed``.

    ``typed`` is called before each piece.  The detach keys do not close the input.
    """
    async with aclosing(read_in(source, keys)) as pieces:
        async for data in pieces:
            await typed()
            await pipes.write_stdin(data)
    if not keys.found:
        await pipes.end_stdin()
        await closed()


async def write(fd: int, data: bytes) -> None:
    """Write all of ``data``, without a time limit.

    Other programs may share our stdout, so it must stay in blocking mode; pieces
    of ``_PIECE`` bytes do not block once it is writable.
    """
    pollable = _pollable(fd)
    rest = memoryview(data)
    while rest:
        if pollable:
            await trio.lowlevel.wait_writable(fd)
        with suppress(BlockingIOError):
            rest = rest[os.write(fd, rest[:_PIECE] if pollable else rest) :]


def _pollable(fd: int) -> bool:
    """Return whether epoll supports ``fd``; files and /dev/null are always ready instead."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)
