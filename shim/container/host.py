"""The objects and settings that all containers of one daemon share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shim import log
from shim.container.expected import SavedExpected
from shim.container.reservations import Reservations
from shim.recovery.deposit import Deposit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import trio

    from shim.events.source import Publisher
    from shim.reaper import Reaper


@dataclass(frozen=True)
class Host:
    """``limit`` bounds one runtime command, in seconds.

    ``reservations`` are those of ``start``.  ``bundle`` is that of the container for which
    the daemon was started.  ``address`` is where the daemon listens; "" writes no address
    into the bundles.
    ``deposit`` has copies of the fds and states of the containers, ``expected`` the state of
    those that the daemon expects.  ``adopter`` is the process that has the orphans of a killed
    daemon, 0 for the parent of this one.
    ``ended_is_killed`` is for CRI-O: its stop fails if the reply to a SIGTERM or SIGKILL
    for an exited container is NOT_FOUND, and Kata replies success.  containerd and
    Docker need the NOT_FOUND.
    """

    namespace: str
    reaper: Reaper
    publisher: Publisher
    nursery: trio.Nursery
    limit: float
    reservations: Reservations = field(default_factory=Reservations)
    bundle: str = ""
    address: str = ""
    ended_is_killed: bool = False
    deposit: Deposit = field(default_factory=Deposit)
    expected: SavedExpected = field(default_factory=SavedExpected)
    adopter: int = 0

    def go(self, task: Callable[[], Awaitable[object]]) -> None:
        """Run ``task`` in the daemon's nursery.

        An error in it is logged and ends this task only: a fault in one container
        must not end the daemon, which the other containers of the pod share.
        """
        self.nursery.start_soon(_guarded, task)


async def _guarded(task: Callable[[], Awaitable[object]]) -> None:
    try:
        await task()
    except Exception as exc:
        log.crash("a background task of a container failed", exc)
