"""Between our own stdin, stdout, stderr and a process behind a shim: fifos.

We make the fifos, the shim opens the other ends.  A shim may hold both ends of
each for as long as the process exists, so the end of the output is not the end
of the process: ask ``Wait`` for that, then ``Delete``, and the shim lets go.

Source: protocol section 8; fifo(7) for what an open without a peer does.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack, aclosing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from shimctl.values import Stdio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
    from pathlib import Path

    from shimctl.attach.keys import KeyFilter

CHUNK = 64 * 1024  # bytes, what a fifo holds
_PIECE = 4096  # bytes; a writable pipe takes as much without blocking


@dataclass(slots=True)
class Pipes:
    """Our ends of a process's fifos, each owned by the block that opened them.

    ``stdin`` is None when there is none to give, ``stderr`` with a terminal.
    The fifos go with the block unless it says to ``keep`` them.
    """

    stdio: Stdio
    stdin: int | None
    stdout: int
    stderr: int | None
    keep: bool = False

    def close_stdin(self) -> None:
        """Close our end of stdin, once; the process sees EOF after ``CloseIO`` too."""
        fd, self.stdin = self.stdin, None
        if fd is not None:
            trio.lowlevel.notify_closing(fd)
            os.close(fd)

    async def write_stdin(self, data: bytes) -> None:
        """Pass on what was typed; nothing happens once stdin is closed at either end."""
        if self.stdin is not None:
            with suppress(BrokenPipeError, trio.ClosedResourceError):
                await write(self.stdin, data)


@contextmanager
def open_pipes(directory: Path, *, stdin: bool, terminal: bool) -> Iterator[Pipes]:
    """Make the fifos in ``directory`` and open our ends; neither needs the shim yet."""
    with ExitStack() as stack:

        def opened(name: str, flags: int) -> tuple[str, int]:
            path = directory / name
            os.mkfifo(path, 0o600)
            made.append(path)
            return str(path), os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)

        def unlink() -> None:
            if pipes is None or not pipes.keep:
                for path in made:
                    path.unlink(missing_ok=True)

        pipes: Pipes | None = None
        made: list[Path] = []
        stack.callback(unlink)
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


async def copy_out(
    source: int,
    target: int,
    broken: Callable[[], Awaitable[object]],
    tell: Callable[[bytes], object] | None = None,
) -> None:
    """Copy a process's output to our own until every writer has closed it.

    ``tell`` is told of everything first.  Once nobody reads ours any more, the
    rest is read and thrown away, as the process must not block on us; ``broken``
    is called each time more arrives.
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
        if tell is not None:
            tell(data)
        if alive:
            try:
                await write(target, data)
            except BrokenPipeError:
                alive = False
        if not alive:
            await broken()


async def drain(source: int, target: int, tell: Callable[[bytes], object] | None = None) -> None:
    """Copy what is there now, and stop where reading would have to wait."""
    with suppress(BlockingIOError, BrokenPipeError):
        while data := os.read(source, CHUNK):
            if tell is not None:
                tell(data)
            await write(target, data)


async def read_in(source: int, keys: KeyFilter) -> AsyncGenerator[bytes, None]:
    """Give our input in pieces, without the keys that let go, until it or they come to an end."""
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
            return  # the terminal is gone, or not ours any more
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
    """Copy our input to a process; at its end close, and call ``closed``.

    ``typed`` is called before each piece.  The keys that let go close nothing.
    """
    async with aclosing(read_in(source, keys)) as pieces:
        async for data in pieces:
            await typed()
            await pipes.write_stdin(data)
    if not keys.found:
        pipes.close_stdin()
        await closed()


async def write(fd: int, data: bytes) -> None:
    """Write all of ``data``, however long ``fd`` takes.

    Our stdout may be shared with other programs, so it is not ours to make
    non-blocking; pieces this small do not block once it is writable.
    """
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
