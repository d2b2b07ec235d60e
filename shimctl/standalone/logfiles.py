"""The files of one log: ``FILE`` and its predecessors ``FILE.1``, ``FILE.2`` and so on.

The program that writes the log renames the full file to ``FILE.1``, that one to
``FILE.2``, and begins a new ``FILE``.  Compressed predecessors are not read.
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHUNK = 256 * 1024  # bytes of one read
_FLOCK = "hhqqi"  # struct flock: type, whence, start, length, pid


class Log:
    """A log file, its predecessors, and its successors under the same name."""

    def __init__(self, path: Path, *, rotated: bool) -> None:
        self._path = path
        self._rotated = rotated
        self._fd = -1
        for file in self._files():
            self._fd = self._open(file)
            if self._fd >= 0:
                break
        self._complete = False
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def _files(self) -> list[Path]:
        """Return the files of the log, the oldest first; the newest need not exist."""
        numbered: list[tuple[int, Path]] = []
        if self._rotated:
            with suppress(OSError):
                for path in self._path.parent.glob(f"{_escaped(self._path.name)}.*"):
                    number = path.name[len(self._path.name) + 1 :]
                    if number.isascii() and number.isdecimal():
                        numbered.append((int(number), path))
        return [path for _, path in sorted(numbered, reverse=True)] + [self._path]

    @staticmethod
    def _open(path: Path) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return -1

    def seek_to_last(self, lines: int) -> None:
        """Seek to the last ``lines`` lines, reading backwards from the end."""
        if self._fd < 0:
            return
        position = size = os.fstat(self._fd).st_size
        wanted = lines
        if size and os.pread(self._fd, 1, size - 1) == b"\n":
            wanted += 1
        while lines and position > 0:
            start = max(0, position - CHUNK)
            data = os.pread(self._fd, position - start, start)
            if (count := data.count(b"\n")) < wanted:
                wanted -= count
                position = start
                continue
            end = len(data)
            for _ in range(wanted):
                end = data.rindex(b"\n", 0, end)
            position = start + end + 1
            break
        os.lseek(self._fd, position, os.SEEK_SET)

    def chunks(self) -> Iterator[bytes]:
        """Give the bytes that were written since the last call."""
        while True:
            data = os.read(self._fd, CHUNK) if self._fd >= 0 else b""
            if data:
                yield data
            elif not self._advance():
                return

    def lines(self) -> Iterator[bytes]:
        """Give complete lines that were written since the last call."""
        for data in self.chunks():
            *lines, self._rest = (self._rest + data).split(b"\n")
            yield from lines

    def _advance(self) -> bool:
        """Go to the next file if there is one; return whether reading can continue."""
        if self._fd < 0:
            self._fd = self._open(self._path)
            return self._fd >= 0
        ours = os.fstat(self._fd)
        if os.lseek(self._fd, 0, os.SEEK_CUR) > ours.st_size:
            os.lseek(self._fd, 0, os.SEEK_SET)  # truncated
            return True
        try:
            newest = self._path.stat()
        except FileNotFoundError:
            return False  # being renamed, or deleted
        if os.path.samestat(newest, ours):
            return False
        if not self._complete:
            self._complete = True  # it has no writer any more: read its rest, then go on
            return True
        following = self._open(self._next(ours))
        if following < 0:
            return False
        os.close(self._fd)
        self._fd, self._complete = following, False
        return True

    def _next(self, ours: os.stat_result) -> Path:
        """Return the file that follows ours, or the oldest one if ours was deleted."""
        files = self._files()
        for index, file in enumerate(files[:-1]):
            with suppress(FileNotFoundError):
                if os.path.samestat(file.stat(), ours):
                    return files[index + 1]
        return files[0]

    def has_writer(self) -> bool:
        """Return whether the logging program runs; other writers hold no lock."""
        if self._fd < 0:
            return False
        query = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(self._fd, fcntl.F_GETLK, query)
        return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


def _escaped(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)
