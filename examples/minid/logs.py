"""A container's log: what it writes goes from its fifo to a file, inside the kernel.

One ``splice`` takes bytes out of the fifo and puts them into the file, or does
neither: however we die, none is lost and none is there twice.  What the shim
cannot pass on meanwhile it keeps, and the fifo has what it last put there.

Source: splice(2), which refuses a file open for appending; Linux fs/splice.c
iter_file_splice_write for what a kill in the middle leaves; fifo(7).
"""

from __future__ import annotations

import fcntl
import math
import os
import sys
import termios
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_MAX_PIECE, _MIN_PIECE = 1 << 16, 1 << 12  # bytes in one splice
_RETRY_INTERVAL = 1.0  # s between two attempts while the disk is full


class LogFile:
    """The newest of up to ``count`` files of about ``size`` bytes: PATH, PATH.1 the one before.

    Nobody else may write to it.  A file is full at the end of the line that fills it.
    """

    def __init__(self, path: Path, size: int, count: int) -> None:
        self._fd = -1
        self.reopen_at(path, size, count)

    def reopen_at(self, path: Path, size: int, count: int) -> None:
        """Go on at ``path``, with other limits; what is elsewhere stays there."""
        self.close()
        self.path = path
        self._size = size
        self._count = count
        self._piece = min(_MAX_PIECE, max(_MIN_PIECE, size // 8))

    def move_from(self, fifo: int) -> int:
        """Move what is in ``fifo`` to the file; return how many bytes, 0 at its end.

        :raises BlockingIOError: there is nothing.
        :raises OSError: the file takes nothing; what is in the fifo stays there.
        """
        if self._fd < 0:
            self._open()
        if self._full() and _unread(fifo):
            self.close()
            self._rotate()
            self._open()
        flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
        return os.splice(fifo, self._fd, self._piece, flags=flags)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _open(self) -> None:
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        os.lseek(self._fd, 0, os.SEEK_END)

    def _full(self) -> bool:
        used = os.lseek(self._fd, 0, os.SEEK_CUR)
        if used < self._size:
            return False
        # Lines are kept whole, but not for ever: there may be no more ends of lines.
        return used >= self._size + self._piece or os.pread(self._fd, 1, used - 1) == b"\n"

    def _rotate(self) -> None:
        """Make room for a new PATH.  A crash half way leaves a gap, which the next one fills."""
        older = [self.path, *(self._numbered(n) for n in range(1, self._count))]
        gap = next((i for i, path in enumerate(older) if not path.exists()), len(older) - 1)
        for i in range(gap, 0, -1):
            older[i - 1].replace(older[i])
        if self._count == 1:
            self.path.unlink()

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def _unread(fifo: int) -> int:
    return int.from_bytes(fcntl.ioctl(fifo, termios.FIONREAD, bytes(4)), sys.byteorder)


async def copy(
    fifo: int, log: LogFile, log_line: Callable[[str], object], timeout: float = math.inf
) -> bool:
    """Move what comes out of ``fifo`` to ``log``; return True once every writer has closed it.

    Before anybody has opened it to write, that is not so yet: this waits for the
    first.  With a ``timeout`` there was one, and False is returned when nothing
    could be moved for as many seconds.
    """
    reported = False
    moved = trio.current_time()
    wait = timeout == math.inf
    while trio.current_time() - moved <= timeout:
        if wait:
            with trio.move_on_after(timeout):
                await trio.lowlevel.wait_readable(fifo)
        try:
            if not log.move_from(fifo):
                return True
        except BlockingIOError:
            wait = True
        except OSError as exc:
            if not reported:
                log_line(f"{log.path} cannot be written, its output waits: {exc.strerror}")
            reported = True
            await trio.sleep(_RETRY_INTERVAL)
        else:
            moved, wait = trio.current_time(), False
            await trio.lowlevel.checkpoint()
    return False


@contextmanager
def open_fifos(directory: Path, names: tuple[str, ...]) -> Iterator[list[int]]:
    """Open those of the fifos that are there, to read, for the block."""
    fds: list[int] = []
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        there = (directory / name for name in names if (directory / name).is_fifo())
        fds.extend(os.open(path, flags) for path in there)
        yield fds
    finally:
        for fd in fds:
            os.close(fd)
