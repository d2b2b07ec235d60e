"""The fds and states that a replacement inherits from the fork server.

Each fd has a name, which begins with its kind: see :data:`KINDS`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from shim.recovery.slot import StateSlot

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shim.recovery.turn import Turn

# ``daemon``: the state slot of the daemon.  ``listener``: its socket.  ``log``: fd 2.
# ``caller``: the connection to the caller of ``start``, until the caller has the address.
# ``conn/N``: an accepted connection, ``calls/N`` the state slot of its calls.
# ``state/ID``: the state slot of a container.  ``pidfd/ID/EXEC``: a process (an empty
# EXEC is the init process).  ``io/ID/EXEC/ROLE``: an fd of the process's stdio.
# ``hold/ID/STREAM``, ``hold/ID/EXEC/STREAM``: a stream that stays open until an interrupted
# call begins again.
# ``events``: the connection over which events are sent, ``forward`` its record.
# ``journal/N/PATH``: a file of events that are not acknowledged.
# ``expected``: the state slot of the containers that the daemon expects.
# A daemon that moves to another fork server also sends ``moving``, the channel of the move,
# and ``mover``, its pidfd.  ``exits/N`` is a channel to a fork server that it has moved from
# (:mod:`shim.recovery.reports`).
DAEMON, LISTENER, LOG, CALLER, PIDFD = "daemon", "listener", "log", "caller", "pidfd"
EVENTS, FORWARD, EXPECTED = "events", "forward", "expected"
MOVING, MOVER, REPORTS = "moving", "mover", "exits"
KINDS = (
    *(DAEMON, LISTENER, LOG, CALLER, "conn", "calls", "state", PIDFD, "io", "hold"),
    *(EVENTS, FORWARD, "journal", EXPECTED, MOVING, MOVER, REPORTS),
)


class Inherited:
    """The fds of a killed daemon, by name.  Each part of its replacement takes its own.

    ``parent`` is the process that has the daemon's orphans, 0 for the parent of this one.
    ``turn`` is the turn of this process.
    """

    def __init__(self, fds: Mapping[str, int], parent: int = 0) -> None:
        self._fds = dict(fds)
        self.parent = parent
        self.turn: Turn | None = None

    @property
    def fds(self) -> Mapping[str, int]:
        """Those that no part has taken."""
        return self._fds

    def take(self, name: str) -> int:
        """Return the fd ``name``, owned by the caller from now on, or -1."""
        return self._fds.pop(name, -1)

    def take_all(self, prefix: str) -> dict[str, int]:
        """Return the fds with names that begin with ``prefix``, by the rest of the name."""
        names = [name for name in self._fds if name.startswith(prefix)]
        return {name.removeprefix(prefix): self._fds.pop(name) for name in names}

    def take_slot(self, name: str) -> StateSlot | None:
        """Return the state slot ``name``, owned by the caller, or None."""
        fd = self.take(name)
        return StateSlot(fd) if fd >= 0 else None

    def processes(self) -> list[str]:
        """Return the names of the pidfds; nothing is taken."""
        paths = {name: Path(f"/proc/self/fd/{fd}") for name, fd in self._fds.items()}
        return [name for name, path in paths.items() if "pidfd" in str(path.readlink())]

    def copy_slot(self, name: str) -> StateSlot:
        """Return a copy of the state slot ``name``, owned by the caller."""
        return StateSlot(os.dup(self._fds[name]))

    def names(self, prefix: str) -> list[str]:
        """Return the rest of the names that begin with ``prefix``; nothing is taken."""
        return [name.removeprefix(prefix) for name in self._fds if name.startswith(prefix)]

    def close(self) -> list[str]:
        """Close the fds that no part has taken; return their names."""
        names = list(self._fds)
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        return names
