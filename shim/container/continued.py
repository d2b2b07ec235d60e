"""The containers of a killed daemon, which its replacement continues.

The server replays the calls without a reply within a few seconds.  Such a call may need a
container that is deleted already, or the streams of an undone Create.  So both are kept until
then.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from shim.container.container import Container
from shim.container.lifecycle import State
from shim.container.lost import end_lost
from shim.container.restoring import REPLAYED
from shim.container.snapshot import parse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from shim.container.containers import Containers
    from shim.container.host import Host
    from shim.recovery.inherited import Inherited


class Continued:
    """The containers of the killed daemon that were being deleted or created.

    :meth:`restore` adds the others to ``containers``.
    """

    def __init__(self, host: Host, containers: Containers) -> None:
        self._host = host
        self._containers = containers
        # Containers that a killed daemon had deleted, perhaps without a reply.
        self._deleted: dict[str, Container] = {}
        # Containers of undone Creates, which may run again.
        self._undone: dict[str, Container] = {}

    def deleted(self, id_: str) -> Container | None:
        """Return the container ``id_`` if the killed daemon has deleted it."""
        return self._deleted.get(id_)

    async def restore(self, inherited: Inherited) -> None:
        """Go on with the containers of a killed daemon; call it before any request is served."""
        unsettled: list[Callable[[], Awaitable[object]]] = []
        for id_ in inherited.names("state/"):
            slot = inherited.take_slot(f"state/{id_}")
            assert slot is not None
            try:
                snapshot = parse(slot.read())
                container = await Container.restore(snapshot, slot, inherited, self._host)
            except Exception as exc:  # it may cost this container only
                if (lost := end_lost(id_, slot, inherited, self._host, exc)) is not None:
                    self._containers.reserve(id_)
                    self._containers.add(lost)
                continue
            if snapshot.doing == "Create":
                creation = self._containers.creations.begin(id_, None)
                unsettled.append(creation.ended.wait)
                self._host.go(partial(self._undo, container))
            elif container.init.state is State.DELETED:
                self._deleted[id_] = container
                self._host.go(partial(self._forget_deleted_later, container))
            else:
                self._containers.reserve(id_)
                self._containers.add(container)
                unsettled.append(container.wait_settled)
        self._host.go(partial(self._claim, unsettled))

    async def _claim(self, unsettled: list[Callable[[], Awaitable[object]]]) -> None:
        """Let the keeper reap orphans that are not known, once all others are."""
        for settled in unsettled:
            await settled()
        self._host.deposit.claimed()

    async def _undo(self, container: Container) -> None:
        """Undo the interrupted Create of ``container``; its call, if it is replayed, waits."""
        try:
            await container.undo_create()
        finally:
            self._containers.creations.end(container.id)
            self._undone[container.id] = container
        await trio.sleep(REPLAYED)
        self.forget_undone(container.id)
        if container.id not in self._containers:
            self._containers.note_cancelled(container.id)
            self._containers.drop_reservation(container.id)
            self._containers.shut_down()

    def is_undone(self, id_: str) -> bool:
        """Return whether a Create of ``id_`` was interrupted and has not begun again."""
        return id_ in self._undone and id_ not in self._containers

    def forget_undone(self, id_: str) -> None:
        """Close the streams of the undone Create of ``id_``, if there is one."""
        if (container := self._undone.pop(id_, None)) is not None:
            container.release_streams()

    async def _forget_deleted_later(self, container: Container) -> None:
        await trio.sleep(REPLAYED)
        self.forget_deleted(container.id)

    def forget_deleted(self, id_: str) -> None:
        """Close the deleted container ``id_``, if there is one."""
        if (container := self._deleted.pop(id_, None)) is not None:
            container.close()
            self._containers.drop_reservation(id_)
