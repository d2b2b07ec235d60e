"""What all containers of one daemon share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shim import log
from shim.container.cleanup_records import CleanupRecords

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import trio

    from shim.events.publisher import Publisher
    from shim.reaper import Reaper


@dataclass(frozen=True)
class Host:
    """``limit`` is how long one command of a runtime may take, in seconds.

    ``cleanup_records`` is where to note what is left to do if this daemon dies, and ``address``
    where it listens; without one nobody looks for it.
    ``ended_is_killed`` is for CRI-O, which cannot stop a container that has ended
    where a SIGTERM or SIGKILL for it is answered with NOT_FOUND; Kata answers
    success.  containerd and Docker need the NOT_FOUND.
    """

    namespace: str
    reaper: Reaper
    publisher: Publisher
    nursery: trio.Nursery
    limit: float
    cleanup_records: CleanupRecords = field(default_factory=CleanupRecords)
    address: str = ""
    ended_is_killed: bool = False

    def go(self, task: Callable[[], Awaitable[object]]) -> None:
        """Run ``task`` beside everything else.

        An error in it is logged and costs this one task: a fault of one
        container's must not end the daemon of all the others in its pod.
        """
        self.nursery.start_soon(_guarded, task)


async def _guarded(task: Callable[[], Awaitable[object]]) -> None:
    try:
        await task()
    except Exception as exc:
        log.crash("a task of a container failed", exc)
