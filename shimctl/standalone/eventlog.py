"""The file of received events, through which any number of watchers see the same events.

One watcher at a time receives: it holds a lock and listens on the socket to which the
shims of ``shimctl`` send their events.  It appends each event to the file before it
acknowledges the event.  All watchers, itself included, read the file.  When the receiver
exits, another watcher gets the lock.

Each line of the file is one event as JSON.  The full file is renamed to ``FILE.1``, so
the last ``LIMIT`` bytes at least are kept.  A shim sends an event again if the receiver
was killed before its acknowledgement arrived; the receiver then finds the event in the
file and does not append it again.

Source: flock(2).
"""

from __future__ import annotations

import errno
import os
from collections import deque
from typing import TYPE_CHECKING

from shimctl import locking
from shimctl.standalone.logfiles import Log

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from shimctl.standalone.published import Published

LIMIT = 4 << 20  # bytes of the file until it is renamed
_RECENT = 1024  # events that are compared with a new one; a shim repeats only its last


class EventLog:
    """The file that the receiver writes, at ``path``; it is renamed at ``limit`` bytes."""

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        self._path = path
        self._limit = limit
        self._recent: deque[bytes] = deque(maxlen=_RECENT)
        with Log(path, rotated=True) as log:
            self._recent.extend(log.lines())
        self._fd = self._open()

    def append(self, event: Published) -> None:
        """Write an event unless it is a repetition.

        :raises OSError: it cannot be written; the file then has no part of it.
        """
        line = event.encode()
        if line in self._recent:
            return
        data = line + b"\n"
        size = os.fstat(self._fd).st_size
        if size and size + len(data) > self._limit:
            self.close()
            self._path.replace(f"{self._path}.1")
            self._fd, size = self._open(), 0
        try:
            _write(self._fd, data)
        except OSError:
            os.ftruncate(self._fd, size)
            raise
        self._recent.append(line)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self._path, flags, 0o600)
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            os.write(fd, b"\n")  # the last receiver was killed within a line
        return fd

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _write(fd: int, data: bytes) -> None:
    if os.write(fd, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def try_lock(path: Path) -> AbstractContextManager[bool]:
    """Try to become the receiver for the block; yield whether that succeeded."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return locking.try_lock(os.open(path, flags, 0o600))
