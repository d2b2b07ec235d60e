"""A lock, the turn: only the process that holds it may act on the states of a daemon.

During an upgrade a daemon has two possible replacements, one in each of two fork servers, and
either may be killed.  Each takes the turn before it acts; the kernel releases the lock when
the process ends.  A replacement that serves increments a count in the file, and writes the
token of its server beside it.  So the other one ends, even if it was stopped meanwhile, and
the first has been killed since, or has moved to a third fork server.

Source: fcntl(2), open file description locks.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from dataclasses import dataclass
from typing import Self

_PAUSE = 0.005
_FLAGS = os.O_RDWR | os.O_CLOEXEC
_SERVED = struct.Struct("<QQ")  # the count and the token
_SERVED_AT = 16  # their offset in the state's file


@dataclass(frozen=True, slots=True)
class Claim:
    """The claim of one fork server to replace a daemon.

    It is valid as long as ``count`` replacements have served, or if the last one that has
    served had the same ``token``.  A ``count`` of -1 is a claim without another server's.
    """

    token: int = 0
    count: int = -1

    @classmethod
    def new(cls, slot: int = -1) -> Self:
        """Return a claim with its own token; ``slot`` is given if there is another server's.

        :raises OSError: ``slot`` is no file in memory.
        """
        count = -1 if slot < 0 else _served(slot)[0]
        return cls(int.from_bytes(os.urandom(8), "little") | 1, count)

    def is_valid(self, slot: int) -> bool:
        return self.count in (-1, _served(slot)[0]) or self.has_served(slot)

    def has_served(self, slot: int) -> bool:
        """Return whether the last replacement that has served was one of this claim."""
        return _served(slot)[1] == self.token


class Turn:
    """The turn for the states of a daemon; ``slot`` is the fd of the daemon's state slot."""

    def __init__(self, slot: int, claim: Claim) -> None:
        # Locks belong to an open file, and the copies of the slot are one open file.
        self._fd = os.open(f"/proc/self/fd/{slot}", _FLAGS)
        self._claim = claim
        self._serves = False

    def take(self, limit: float) -> bool:
        """Wait for the turn; return False if the claim is not valid any more.

        :raises TimeoutError: after ``limit`` seconds another process still holds the turn,
            and does not serve.
        """
        deadline = time.monotonic() + limit
        while not self._lock():
            if not self._claim.is_valid(self._fd):
                return False
            if time.monotonic() >= deadline:
                raise TimeoutError("another process has the states of this shim")
            time.sleep(_PAUSE)
        return self._claim.is_valid(self._fd)

    def serve(self) -> None:
        """Report that this process, which holds the turn, serves.  Twice is as once."""
        if self._serves:
            return
        self._serves = True
        count, _ = _served(self._fd)
        os.pwrite(self._fd, _SERVED.pack(count + 1, self._claim.token), _SERVED_AT)

    def leave(self) -> None:
        """Release the turn.  A second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _lock(self) -> bool:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _LOCK)
        except BlockingIOError:
            return False
        return True


def _served(slot: int) -> tuple[int, int]:
    """Return how many replacements have served with the slot, and the token of the last."""
    found = os.pread(slot, _SERVED.size, _SERVED_AT).ljust(_SERVED.size, b"\0")
    count, token = _SERVED.unpack(found)
    return count, token


# struct flock for the first byte, of which the last member is padded.
_LOCK = struct.Struct("hhqqi4x").pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
