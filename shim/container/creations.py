"""The running Creates of one daemon, and those that were cancelled.

A manager that restarts closes its connection during a Create.  Then the Create is cancelled and
undone.  After its restart the manager queries the container and deletes it.  The next Create
with the same id waits until the earlier one is undone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from shim.api.task_pb2 import CreateTaskRequest, CreateTaskResponse
    from shim.ttrpc.server import Stream

# Ids of cancelled Creates to remember.  A manager that restarted queries one within a
# second; a pod has fewer containers.
_CANCELLED = 1000


class Creation:
    """A Create under way.  ``ended`` is set once it has succeeded or is undone.

    ``stream`` is that of its call; None for one that a killed daemon began, and that is undone.
    """

    def __init__(self, stream: Stream[CreateTaskRequest, CreateTaskResponse] | None) -> None:
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self._stream = stream

    @property
    def is_cancelled(self) -> bool:
        """Whether the caller's connection has ended, or a Shutdown has cancelled the Create."""
        return self._stream is None or self._stream.lost or self.scope.cancel_called


class Creations:
    """``under_way`` has the Creates by the ids of their containers.

    ``cancelled`` are the ids of the Creates that were cancelled in a killed daemon.
    """

    def __init__(self, cancelled: Iterable[str] = ()) -> None:
        self.under_way: dict[str, Creation] = {}
        self._waiting = 0  # calls of Create that wait for a cancelled one of their id
        # Ids of which the last Create was cancelled, the oldest first.
        self._cancelled: dict[str, None] = dict.fromkeys(cancelled)

    @property
    def are_expected(self) -> bool:
        """Whether a Create is under way, or waits for the undoing of another one."""
        return bool(self._waiting or self.under_way)

    def begin(
        self, id_: str, stream: Stream[CreateTaskRequest, CreateTaskResponse] | None
    ) -> Creation:
        """Note that a Create begins; :meth:`end` has to follow.

        ``stream`` is that of the call, as in :class:`Creation`.
        """
        creation = self.under_way[id_] = Creation(stream)
        return creation

    def end(self, id_: str) -> None:
        """Note that the Create has succeeded or is undone."""
        self.under_way.pop(id_).ended.set()

    def was_cancelled(self, id_: str) -> bool:
        """Return whether the last Create of ``id_`` was cancelled, also one under way."""
        creation = self.under_way.get(id_)
        return id_ in self._cancelled or (creation is not None and creation.is_cancelled)

    @property
    def cancelled(self) -> Collection[str]:
        """The ids of which the last Create was cancelled, the oldest first."""
        return self._cancelled

    def forget_cancelled(self, id_: str) -> bool:
        """Forget that a Create of ``id_`` was cancelled; return whether that was known."""
        known = id_ in self._cancelled
        self._cancelled.pop(id_, None)
        return known

    def note_cancelled(self, id_: str) -> None:
        """Remember that the Create of ``id_`` was cancelled, until it is forgotten."""
        self._cancelled[id_] = None
        if len(self._cancelled) > _CANCELLED:
            del self._cancelled[next(iter(self._cancelled))]

    async def wait_undone(self, id_: str) -> None:
        """Wait until a cancelled Create of ``id_`` is undone."""
        creation = self.under_way.get(id_)
        if creation is None or not creation.is_cancelled:
            return
        self._waiting += 1
        try:
            await creation.ended.wait()
        finally:
            self._waiting -= 1
