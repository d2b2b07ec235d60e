"""A lock, the turn: only the process that holds it may act on the states of a daemon.

During an upgrade a daemon has two possible replacements, one in each of two fork servers, and
either may be killed.  Each takes the turn before it acts; the kernel releases the lock when
the process ends.  A replacement that serves also takes a second lock, so the other one ends.
It also increments a count in the file, so that the other one ends even if the first has
been killed since, or has moved to a third fork server.

Source: fcntl(2), open file description locks.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time

_PAUSE = 0.005
_FLAGS = os.O_RDWR | os.O_CLOEXEC
_TURN, _SERVING = 0, 1  # the bytes of the state's file that are locked
_COUNT = 16  # offset of the count in the state's file


def count_of(slot: int) -> int:
    """Return how many replacements have served with the state slot ``slot``."""
    return int.from_bytes(os.pread(slot, 8, _COUNT), "little")


class Turn:
    """The turn for the states of a daemon; ``slot`` is the fd of the daemon's state slot."""

    def __init__(self, slot: int, passed: int = -1) -> None:
        """Open the turn, or own ``passed``, the fd of a process that holds it."""
        # Locks belong to an open file, and the copies of the slot are one open file.
        self._fd = passed if passed >= 0 else os.open(f"/proc/self/fd/{slot}", _FLAGS)
        self._count = self._counted()
        self._serves = False

    def take(self, limit: float) -> bool:
        """Wait for the turn; return False if another process serves, or has served meanwhile.

        :raises TimeoutError: after ``limit`` seconds another process still holds the turn,
            and does not serve.
        """
        deadline = time.monotonic() + limit
        while not self._lock(_TURN):
            if self._is_locked(_SERVING):
                return False
            if time.monotonic() >= deadline:
                raise TimeoutError("another process has the states of this shim")
            time.sleep(_PAUSE)
        return self._counted() == self._count

    def serve(self) -> None:
        """Report that this process, which holds the turn, serves.  Twice is as once.

        The count comes first: once the other replacement has ended because of the lock, the
        fork server of this one has to know that it is the one to replace it.
        """
        if self._serves:
            return
        self._serves = True
        self._count += 1
        os.pwrite(self._fd, self._count.to_bytes(8, "little"), _COUNT)
        self._lock(_SERVING)

    def fileno(self) -> int:
        return self._fd

    def stop_serving(self) -> None:
        """Keep the turn, but stop reporting that this process serves."""
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _flock(_SERVING, fcntl.F_UNLCK))

    def leave(self) -> None:
        """Release the turn.  A second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _counted(self) -> int:
        return count_of(self._fd)

    def _lock(self, byte: int) -> bool:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _flock(byte))
        except BlockingIOError:
            return False
        return True

    def _is_locked(self, byte: int) -> bool:
        found = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, _flock(byte))
        return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)


# struct flock, of which the last member is padded.
_FLOCK = struct.Struct("hhqqi4x")


def _flock(byte: int, kind: int = fcntl.F_WRLCK) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)
