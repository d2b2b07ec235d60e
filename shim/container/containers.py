"""The table of the containers of one daemon, which decides when the daemon ends.

The daemon ends when it has no container and expects none.  It expects a container while its
Create is under way, and for some seconds after a ``start`` has replied with the address of
the daemon.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import trio

from shim.container.creations import Creations
from shim.container.expected import Expected, restored_time, saved_time
from shim.container.reservations import Reservation
from shim.errors import ExistsError, NotFoundError, UnavailableError

if TYPE_CHECKING:
    from shim.container.container import Container
    from shim.container.host import Host

# Seconds for which a shim without a container waits for the Create of a ``start`` that
# joined it.  The manager sends Create as soon as it has read the answer of ``start``.
JOIN_LIMIT = 5.0
_STARTS = 1000  # such ``start`` to count


class Containers:
    """The table of containers; ``shutdown`` is set when the daemon has to end."""

    def __init__(self, host: Host, shutdown: trio.Event) -> None:
        self.shutdown = shutdown
        earlier = host.expected.earlier
        self.creations = Creations(earlier.cancelled)
        self._host = host
        # None while the container is being created, which reserves its id.
        self._containers: dict[str, Container | None] = {}
        self._in_use = trio.Event()
        self._unused = trio.Event()
        # For each ``start`` that has joined, until its Create arrives: the time at which the
        # Create is no longer expected.
        self._joined = deque(map(restored_time, earlier.joined), maxlen=_STARTS)
        self._ends = earlier.ends

    def __len__(self) -> int:
        """Count the containers, also those that are being created."""
        return len(self._containers)

    def __contains__(self, id_: str) -> bool:
        """Return whether ``id_`` is reserved."""
        return id_ in self._containers

    def find(self, id_: str) -> Container | None:
        """Return the created container ``id_``, None if there is none."""
        return self._containers.get(id_)

    def get(self, id_: str) -> Container:
        """Return the created container ``id_``.

        :raises NotFoundError: there is none.
        """
        container = self._containers.get(id_)
        if container is None:
            raise NotFoundError(f"container {id_} does not exist in this shim: not found")
        return container

    def reserve(self, id_: str) -> None:
        """Reserve ``id_`` for a container that is created now.

        :raises ExistsError: a container of this id exists, or is being created.
        """
        if id_ in self._containers:
            raise ExistsError(f"container {id_} already exists in this shim")
        if not self._containers:  # wait_unused() waits for the end of this use
            self._unused = trio.Event()
        self._containers[id_] = None
        self._in_use.set()
        self._host.reservations.fulfil(id_)
        if self._joined:
            self._joined.popleft()
        ended, self._ends = self._ends, False
        if self.creations.forget_cancelled(id_) or ended:
            self._save_expected()

    def release(self, id_: str) -> None:
        """Release the id of a deleted container, or of one whose Create has failed."""
        del self._containers[id_]
        self.drop_reservation(id_)
        if not self._containers:
            self._unused.set()
            self._in_use = trio.Event()

    def add(self, container: Container) -> None:
        """Add a created container, of which the id is reserved."""
        self._containers[container.id] = container
        if self.creations.forget_cancelled(container.id):  # the Shutdown came too late
            self._save_expected()

    async def wait_unused(self, seconds: float) -> None:
        """Return once there has been no container for ``seconds``.

        Only a manager that died between two steps leaves a shim without a container
        for long.  containerd 1.6 then never shuts that shim down, and cannot use the
        container id again until the shim has exited.
        """
        while True:
            with trio.move_on_after(seconds) as scope:
                await self._in_use.wait()
            if scope.cancelled_caught:
                return
            await self._unused.wait()

    def shut_down(self) -> None:
        """Set ``shutdown`` if there is no container and none is about to be created.

        A ``start`` that joined has the address, but its manager may not have connected yet.
        The shim then ends later, unless a container is created.
        """
        if self._containers or self.creations.are_expected:
            return
        if not self._ends:
            self._ends = True
            self._save_expected()
        while self._joined and self._joined[0] <= trio.current_time():
            self._joined.popleft()
        joined = self._joined[-1] if self._joined else 0.0
        if until := max(joined, self._host.reservations.expected_until):
            self._host.go(partial(self._shut_down_at, until))
        else:
            self.shutdown.set()

    def resume_shutdown(self) -> None:
        """Shut down if the daemon that this one replaces was about to.

        Its manager has the reply to the Shutdown, or gets it now, and does not send another.
        """
        if self._ends:
            self.shut_down()

    @property
    def is_settled(self) -> bool:
        """Whether no operation is under way, so that the states of the containers are complete."""
        if self.creations.under_way or self._host.reaper.commands:
            return False
        return all(one is None or one.is_settled for one in self._containers.values())

    def forget_start(self, id_: str) -> None:
        """Shut down as above, without the container ``id_``, whose ``start`` has failed."""
        if id_ not in self._containers:
            self.drop_reservation(id_)
        self.shut_down()

    def drop_reservation(self, id_: str) -> None:
        """Forget the ``start`` of container ``id_``, which was deleted or is not created."""
        if self._host.reservations.drop(id_):
            self._save_expected()

    def note_cancelled(self, id_: str) -> None:
        """Remember that the Create of ``id_`` was cancelled, until the next one."""
        self.creations.note_cancelled(id_)
        self._save_expected()

    def _save_expected(self) -> None:
        self._host.expected.write(
            Expected(
                self._host.reservations.state(),
                [saved_time(time) for time in self._joined],
                list(self.creations.cancelled),
                self._ends,
            )
        )

    async def _shut_down_at(self, time: float) -> None:
        with trio.move_on_at(time):
            await self._in_use.wait()
            return  # a Create came: the shim ends with its last container
        self.shut_down()

    def join(self, reservation: str) -> None:
        """Expect a container of which a ``start`` will reply with the address of this shim.

        ``reservation`` is empty for the container of a pod.

        :raises InvalidError: it is malformed.
        :raises UnavailableError: this shim is shutting down.
        :raises FullError, ExistsError: as :meth:`Reservations.add`.
        """
        if self.shutdown.is_set():
            raise UnavailableError("cannot join: this shim is shutting down")
        if not reservation:
            self._joined.append(trio.current_time() + JOIN_LIMIT)
        else:
            # An interrupted Create that is undone has its place, too: it runs again.
            taken = [*self._containers, *self.creations.under_way]
            self._host.reservations.add(Reservation.parse(reservation), taken)
        self._save_expected()
