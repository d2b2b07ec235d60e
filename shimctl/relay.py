"""Between our own stdin, stdout, stderr and a process behind a shim: fifos.

We make the fifos, the shim opens the other ends.  A shim may hold both ends of
each for as long as the process exists, so the end of the output is not the end
of the process: ask ``Wait`` for that, then ``Delete``, and the shim lets go.

Source: protocol section 8; fifo(7) for what an open without a peer does.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from shimctl.values import Stdio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

_CHUNK = 64 * 1024  # bytes, what a fifo holds
_PIECE = 4096  # bytes; a writable pipe takes as much without blocking


@dataclass(slots=True)
class Pipes:
    """Our ends of a process's fifos, each owned by the block that opened them.

    ``stdin`` is None when there is none to give, ``stderr`` with a terminal.
    """

    stdio: Stdio
    stdin: int | None
    stdout: int
    stderr: int | None

    def close_stdin(self) -> None:
        """Close our end of stdin, once; the process sees EOF after ``CloseIO`` too."""
        fd, self.stdin = self.stdin, None
        if fd is not None:
            os.close(fd)


@contextmanager
def open_pipes(directory: Path, *, stdin: bool, terminal: bool) -> Iterator[Pipes]:
    """Make the fifos in ``directory`` and open our ends; neither needs the shim yet."""
    with ExitStack() as stack:

        def opened(name: str, flags: int) -> tuple[str, int]:
            path = directory / name
            os.mkfifo(path, 0o600)
            stack.callback(path.unlink, missing_ok=True)
            return str(path), os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)

        out_path, out = opened("stdout", os.O_RDONLY)
        stack.callback(os.close, out)
        err_path, err = "", None
        if not terminal:
            err_path, err = opened("stderr", os.O_RDONLY)
            stack.callback(os.close, err)
        in_path, to = "", None
        if stdin:
            # Writing alone would fail until the shim has opened its end.
            in_path, to = opened("stdin", os.O_RDWR)
        pipes = Pipes(Stdio(in_path, out_path, err_path, terminal), to, out, err)
        stack.callback(pipes.close_stdin)
        yield pipes


async def copy_out(source: int, target: int, broken: Callable[[], Awaitable[object]]) -> None:
    """Copy a process's output to our own until every writer has closed it.

    Once nobody reads ours any more, the rest is read and thrown away, as the
    process must not block on us; ``broken`` is called each time more arrives.
    """
    alive = True
    while True:
        await trio.lowlevel.wait_readable(source)
        try:
            data = os.read(source, _CHUNK)
        except BlockingIOError:
            continue
        if not data:
            return
        if alive:
            try:
                await _write(target, data)
            except BrokenPipeError:
                alive = False
        if not alive:
            await broken()


async def drain(source: int, target: int) -> None:
    """Copy what is there now, and stop where reading would have to wait."""
    with suppress(BlockingIOError, BrokenPipeError):
        while data := os.read(source, _CHUNK):
            await _write(target, data)


async def copy_in(source: int, pipes: Pipes, closed: Callable[[], Awaitable[object]]) -> None:
    """Copy our input to a process until it ends, then close and call ``closed``."""
    assert pipes.stdin is not None
    pollable = _pollable(source)
    while True:
        if pollable:
            await trio.lowlevel.wait_readable(source)
        else:
            await trio.lowlevel.checkpoint()
        try:
            data = os.read(source, _CHUNK)
        except BlockingIOError:
            continue
        except OSError:
            break  # the terminal is gone, or not ours any more
        if not data:
            break
        await _write(pipes.stdin, data)
    pipes.close_stdin()
    await closed()


async def _write(fd: int, data: bytes) -> None:
    # Our stdout may be shared with other programs, so it is not ours to make
    # non-blocking; pieces this small do not block once it is writable.
    pollable = _pollable(fd)
    rest = memoryview(data)
    while rest:
        if pollable:
            await trio.lowlevel.wait_writable(fd)
        with suppress(BlockingIOError):
            rest = rest[os.write(fd, rest[:_PIECE] if pollable else rest) :]


def _pollable(fd: int) -> bool:
    """Tell whether epoll takes ``fd``; files and /dev/null are always ready instead."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)
