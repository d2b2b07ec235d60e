"""Remembers the fds that a daemon has left with the fork server, to leave all of them again.

A new fork server has none of them.  The daemon itself may have closed an fd of which a copy
is kept: a pidfd once its process is reaped, for example, or the write end of a fifo.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shim.linux.fifos import Fd


class Originals:
    """An fd of this process for each name of a deposit.

    An :class:`~shim.linux.fifos.Fd` belongs to its user, who drops the name when it is closed.
    Any other fd is copied.
    """

    def __init__(self) -> None:
        self._borrowed: dict[str, Fd] = {}
        self._own: dict[str, int] = {}
        self._missing: set[str] = set()

    def borrow(self, name: str, fd: Fd) -> None:
        """Remember ``fd`` itself, which is open until :meth:`drop`."""
        self.drop([name])
        self._borrowed[name] = fd

    def copy(self, fds: Mapping[str, int]) -> None:
        """Remember copies.  If no fd is left, the names are :attr:`missing`."""
        for name, fd in fds.items():
            self.drop([name])
            try:
                self._own[name] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
            except OSError:
                self._missing.add(name)

    def drop(self, names: Iterable[str]) -> None:
        """Forget names, and close the copies."""
        for name in names:
            self._borrowed.pop(name, None)
            self._missing.discard(name)
            if (fd := self._own.pop(name, -1)) >= 0:
                with suppress(OSError):
                    os.close(fd)

    @property
    def missing(self) -> bool:
        """Whether a name has no fd."""
        return bool(self._missing)

    def all(self) -> dict[str, int]:
        """Return the fds by name."""
        return self._own | {name: fd.number for name, fd in self._borrowed.items()}

    def close(self) -> None:
        """Forget all names."""
        self.drop([*self._own, *self._borrowed, *self._missing])
