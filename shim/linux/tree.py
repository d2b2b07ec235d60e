"""Kills a process and all its descendants, which it stops first so that it misses none.

If only a runtime were killed, its hook and its other children would run on, as children of the
nearest subreaper.

Source: proc_pid_task_children(5); signal(7), SIGSTOP, which no process can ignore.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Seconds of searching for new descendants.  A process that waits for a processor stops when
# it gets one, and may complete a fork until then.
_LIMIT = 1.0
_PAUSE = 0.001
# The states of a thread that will not complete a fork: stopped, traced, zombie, dead, and
# D, of a thread that waits for a disk, or for its vfork child, which has been listed.
_SETTLED = b"TtZXD"


class Tree:
    """Made by :func:`stopped_tree`.  ``pids`` begins with the root."""

    def __init__(self) -> None:
        self._held: dict[int, int] = {}

    @property
    def pids(self) -> list[int]:
        return list(self._held)

    def kill(self) -> None:
        """Send SIGKILL to every process of the tree."""
        self._signal(list(self._held.values()), signal.SIGKILL)

    def _stop(self, pid: int) -> None:
        with suppress(OSError):  # it has ended
            self._held[pid] = pidfd = os.pidfd_open(pid)
            self._signal([pidfd], signal.SIGSTOP)

    def _find(self) -> list[int]:
        """Return the children of stopped processes that are not stopped themselves."""
        found = [child for pid in self._held for child in children_of(pid)]
        return [pid for pid in dict.fromkeys(found) if pid not in self._held]

    def _is_settled(self) -> bool:
        return all(map(_is_settled, self._held))

    @staticmethod
    def _signal(pidfds: list[int], number: int) -> None:
        for pidfd in pidfds:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)

    def _close(self) -> None:
        for pidfd in self._held.values():
            os.close(pidfd)


@contextmanager
def stopped_tree(pid: int) -> Iterator[Tree]:
    """Stop ``pid``, an unreaped child of ours, and all its descendants.

    They are not continued; the caller kills them.
    """
    tree = Tree()
    try:
        tree._stop(pid)
        deadline = time.monotonic() + _LIMIT
        while time.monotonic() < deadline:
            settled = tree._is_settled()  # before the search: a fork may end in between
            found = tree._find()
            for child in found:
                tree._stop(child)
            if settled and not found:
                break
            if not found:
                time.sleep(_PAUSE)
        yield tree
    finally:
        tree._close()


def _is_settled(pid: int) -> bool:
    """Return whether no thread of ``pid`` will complete a fork."""
    with suppress(OSError):  # the process has ended
        for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - names are wanted
            with suppress(OSError), open(f"/proc/{pid}/task/{task}/stat", "rb") as file:
                if file.read().rpartition(b") ")[2][:1] not in _SETTLED:
                    return False
    return True


def children_of(pid: int) -> list[int]:
    """Return the children of every thread of ``pid``, an empty list if it has ended."""
    found: list[int] = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - names are wanted
            with suppress(OSError), open(f"/proc/{pid}/task/{task}/children") as file:
                found += map(int, file.read().split())
    return found
