"""The turn of a process to act on the states of a daemon: no two processes have it at once.

A daemon that is upgraded has two possible replacements, in two fork servers, and either may
be killed.  Each takes the turn first, by a lock that the kernel releases when the process
ends.  One that serves says so by a second lock: then the other is not needed.

Source: fcntl(2), open file description locks.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time

_PAUSE = 0.005
_TURN, _SERVING = 0, 1  # bytes of the state's file, which have the locks


class Turn:
    """The turn for the states of the daemon whose state slot is the fd ``slot``."""

    def __init__(self, slot: int) -> None:
        # Locks belong to an open file, and the copies of the slot are one open file.
        self._fd = os.open(f"/proc/self/fd/{slot}", os.O_RDWR | os.O_CLOEXEC)

    def take(self, limit: float) -> bool:
        """Wait for the turn; return False if another process serves.

        :raises TimeoutError: another process has the turn after ``limit`` seconds, and
            does not serve.
        """
        deadline = time.monotonic() + limit
        while not self._lock(_TURN):
            if self._is_locked(_SERVING):
                return False
            if time.monotonic() >= deadline:
                raise TimeoutError("another process has the states of this shim")
            time.sleep(_PAUSE)
        return True

    def serve(self) -> None:
        """Report that this process, whose turn it is, serves."""
        self._lock(_SERVING)

    def leave(self) -> None:
        """Give up the turn.  A second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

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


def _flock(byte: int) -> bytes:
    return _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
