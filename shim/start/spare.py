"""The spare child of a fork server: it has run the code of a start, and waits for a call."""

from __future__ import annotations

from functools import partial

from shim.start import launcher
from shim.start.children import Call, SpareChild, wait_for_call
from shim.start.forking import fork_child


class Spare:
    """The spare child of the fork server ``identity``, from :meth:`fork` to its use or end."""

    def __init__(self, identity: str) -> None:
        self._identity = identity
        self._child: SpareChild | None = None
        self.is_wanted = True

    @property
    def pid(self) -> int:
        """Its pid, 0 without one."""
        return 0 if self._child is None else self._child.pid

    def fork(self) -> None:
        """Fork a spare child.

        :raises OSError: that failed; it is wanted again only after the next connection.
        """
        self.is_wanted = False
        self._child = SpareChild(*fork_child(partial(wait_for_call, self._identity)))

    def use(self, call: Call) -> SpareChild | None:
        """Send ``call`` to the spare child and return it, None if none can run it."""
        if self._child is None:
            return None
        child, self._child, self.is_wanted = self._child, None, True
        if launcher.is_stuck(child.pid) or not child.send(call):
            # A spare that is stopped exits when it is continued, since its socket is closed.
            child.sock.close()
            return None
        return child

    def drop(self) -> None:
        """Let the spare child end."""
        if self._child is not None:
            self._child.sock.close()
            self._child = None
