"""A container's log: moves its output from its fifo to a file, inside the kernel.

One ``splice`` removes bytes from the fifo and writes them to the file, or does
neither.  So a crash of minid loses no byte and writes none twice.  While minid does
not run, the fifo keeps its bytes and the shim keeps the later ones.

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
_MAX_REST = 1 << 14  # bytes above its size that a file may have to complete a line
_RETRY_INTERVAL = 1.0  # s between two attempts while the disk is full


class LogFile:
    """Up to ``count`` files of ``size`` bytes: the newest is PATH, the next PATH.1.

    No other program may write to PATH.  A file ends with the line that reaches ``size``.
    A longer rest of that line than an eighth of ``size``, or than 16 KiB, is in the next
    file.
    """

    def __init__(self, path: Path, size: int, count: int) -> None:
        self._fd = -1
        self.reopen_at(path, size, count)

    def reopen_at(self, path: Path, size: int, count: int) -> None:
        """Write to ``path`` from now on, with these limits; older files are not moved."""
        self.close()
        self.path = path
        self._size = size
        self._count = count
        self._piece = min(_MAX_PIECE, max(_MIN_PIECE, size // 8))

    def move_from(self, fifo: int) -> int:
        """Move bytes from ``fifo`` to the file; return their number, 0 at the fifo's end.

        :raises BlockingIOError: the fifo is empty.
        :raises OSError: the file cannot be written; the bytes stay in the fifo.
        """
        if self._fd < 0:
            self._open()
        if self._full() and _unread(fifo):
            self.close()
            self._rotate()
            self._open()
        flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
        left = self._size - self._used()
        # Only after each byte beyond the size is it known whether the line has ended.
        count = min(self._piece, left) if left > 0 else 1
        return os.splice(fifo, self._fd, count, flags=flags)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _open(self) -> None:
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        os.lseek(self._fd, 0, os.SEEK_END)

    def _full(self) -> bool:
        used = self._used()
        if used < self._size:
            return False
        most = self._size + min(self._size // 8, _MAX_REST)
        return used >= most or os.pread(self._fd, 1, used - 1) == b"\n"

    def _used(self) -> int:
        return os.lseek(self._fd, 0, os.SEEK_CUR)

    def _rotate(self) -> None:
        """Rename the files so that PATH is free.

        A crash in between leaves a gap in the numbers; the next rotation fills it.
        """
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
    fifo: int, log: LogFile, report: Callable[[str], object], timeout: float = math.inf
) -> bool:
    """Move the bytes of ``fifo`` to ``log``; return True once every writer has closed it.

    ``report`` is called with the error while the file cannot be written, and with an
    empty text when it can be written again.

    Without a ``timeout``, wait for the first writer.  With one, the fifo has had a
    writer; return False if no byte could be moved for ``timeout`` seconds.
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
                report(f"cannot write {log.path}: {exc.strerror}; the output waits in its fifo")
            reported = True
            await trio.sleep(_RETRY_INTERVAL)
        else:
            moved, wait = trio.current_time(), False
            if reported:
                report("")
            reported = False
            await trio.lowlevel.checkpoint()
    return False


@contextmanager
def open_fifos(directory: Path, names: tuple[str, ...]) -> Iterator[list[int]]:
    """Open the existing ones of the fifos for reading, during the block."""
    fds: list[int] = []
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        there = (directory / name for name in names if (directory / name).is_fifo())
        fds.extend(os.open(path, flags) for path in there)
        yield fds
    finally:
        for fd in fds:
            os.close(fd)
