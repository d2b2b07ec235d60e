"""Keeps copies of a process's stdio fds in the fork server, for a replacement of this daemon.

Each copy is named after its role, such as ``stdin``.  The keeper closes a copy when the daemon
closes its fd.  So the names that are left show which streams have not ended.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from shim.linux import fifos
from shim.linux.fifos import Fd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shim.child import Child
    from shim.reaper import Reaper
    from shim.recovery.deposit import Deposit


class Kept:
    """Copies of the fds of one process's stdio, named ``prefix`` and a role.

    ``inherited`` are the fds that a dead daemon left, by role; this object owns them until
    they are taken.  Without a deposit, or with an inactive one, nothing is kept.
    """

    def __init__(
        self,
        deposit: Deposit | None = None,
        prefix: str = "",
        inherited: Mapping[str, int] | None = None,
    ) -> None:
        self.deposit = deposit
        self.prefix = prefix
        self._inherited = dict(inherited or {})

    @property
    def is_active(self) -> bool:
        """Whether copies are kept, so that bytes must survive a kill of this daemon."""
        return self.deposit is not None and self.deposit.is_active

    def hold(self, fds: Mapping[str, Fd]) -> None:
        """Keep a copy of each fd until it is closed."""
        if self.deposit is not None:
            self.deposit.hold({self.prefix + role: fd for role, fd in fds.items()})

    def hold_fifo(self, role: str, both: Fd, others: Mapping[str, Fd] | None = None) -> None:
        """Keep a write end of a fifo that is open at both ends, until ``both`` is closed.

        ``others`` are kept as by :meth:`hold`, and sent in the same message.

        A copy with the read end would count as a reader: a fifo would never show that
        its readers have gone.
        """
        if self.deposit is None or not self.deposit.is_active:
            return
        held = {self.prefix + name: fd for name, fd in {role: both, **(others or {})}.items()}
        writer = fifos.reopen(both, os.O_WRONLY)
        try:
            self.deposit.hold(held, {self.prefix + role: writer.number})
        finally:
            writer.close()

    def put(self, fds: Mapping[str, int]) -> None:
        """Keep a copy of each fd until :meth:`drop`."""
        if self.deposit is not None:
            self.deposit.put({self.prefix + role: fd for role, fd in fds.items()})

    def drop(self, *roles: str) -> None:
        """Keep these copies no longer."""
        if self.deposit is not None:
            self.deposit.drop(*(self.prefix + role for role in roles))

    def watch(self, reaper: Reaper, role: str) -> Child | None:
        """Watch the process whose pidfd has the role ``role/PID``, if one is inherited."""
        for found in self.roles(f"{role}/"):
            pid = int(found.rpartition("/")[2])
            assert self.deposit is not None
            return reaper.watch_inherited(
                pid, self.take_number(found), self.prefix + found, self.deposit
            )
        return None

    def take_number(self, role: str) -> int:
        """Return an inherited fd that the caller owns and drops, or -1."""
        return self._inherited.pop(role, -1)

    def take(self, role: str) -> Fd | None:
        """Return an inherited fd, or None if it was closed before.  The caller owns it."""
        if (number := self.take_number(role)) < 0:
            return None
        fd = Fd(number)
        if self.deposit is not None:
            self.deposit.follow(self.prefix + role, fd)
        return fd

    def take_fifo(self, role: str) -> Fd | None:
        """Return an inherited fifo, open at both ends, or None if it was closed before."""
        writer = Fd(self.take_number(role))
        if writer.number < 0:
            return None
        try:
            both = fifos.reopen(writer, os.O_RDWR)
        finally:
            writer.close()
        self._drop_when_closed(role, both)
        return both

    def roles(self, prefix: str) -> list[str]:
        """Return the inherited roles that begin with ``prefix``."""
        return [role for role in self._inherited if role.startswith(prefix)]

    def close(self) -> None:
        """Close and drop the inherited fds that were not taken."""
        for role in list(self._inherited):
            if (fd := self.take(role)) is not None:
                fd.close()

    def _drop_when_closed(self, role: str, fd: Fd) -> None:
        if self.deposit is not None:
            fd.closing = partial(self.deposit.drop, self.prefix + role)
