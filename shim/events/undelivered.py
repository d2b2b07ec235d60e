"""Delivers the events that a dead daemon left in journals; ``delete`` calls it.

A manager that knows the task publishes the exit of its init process itself, from
the reply of ``delete``, unless Delete had succeeded before.  A manager that has just
started does not: it cleans up after the shims of its earlier run before it knows any
task, and before it accepts events.  A manager that accepts events therefore gets all
events except the exits that it publishes itself, and it gets them before ``delete``
replies.  A manager that does not accept events yet gets all of them, from a
process that outlives ``delete``.

Source: containerd core/runtime/v2/shim.go cleanupAfterDeadShim and delete,
shim_load.go loadShim; cmd/containerd/command/main.go for when it accepts events.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import trio

from shim import log
from shim.api.events_pb2 import TaskDelete, TaskExit
from shim.events.backlog import Backlog
from shim.events.journal import is_waiting
from shim.events.publisher import EventPublisher, address_of, is_on_disk
from shim.events.unpublished import add_unpublished, has_unpublished
from shim.linux.sockets import can_connect
from shim.scope import background

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from shim.api.envelope_pb2 import Envelope

# Seconds to deliver to a manager that accepts events, within its timeout of ``delete``.
DELIVERY = 1.0
# Seconds to deliver to a manager that is starting and may have many shims to clean up after.
BACKGROUND_DELIVERY = 60.0
# Seconds between two attempts to lock the journal while the daemon shuts down, and at
# most between two attempts to connect to the manager.
_LOCK_INTERVAL = 0.01
_CONNECT_PAUSE = 0.1
_EXIT, _DELETE = TaskExit.DESCRIPTOR.full_name, TaskDelete.DESCRIPTOR.full_name


def deliver_undelivered(
    journals: Mapping[str, str],
    address: str,
    *,
    namespace: str,
    publishes_exit: Callable[[str], bool],
    fork: Callable[[Callable[[], object], Sequence[int]], None],
) -> None:
    """Deliver the events of ``journals`` to the manager at ``address``.

    ``journals`` are paths by container id.  Exits that were recorded and not published are
    delivered, too, in ``namespace``.  Takes two seconds at most.  ``publishes_exit`` returns
    whether the manager calls ``delete`` for a container id, and therefore publishes the exit
    itself.  ``fork`` is called with a longer delivery, to run it in another process, and with
    the fds that it needs.
    """
    if not address:
        return
    is_there = can_connect(address_of(address))
    deadline = time.monotonic() + DELIVERY
    # A fork has no copy of the thread.  The forked process itself may wait for a disk.
    loaded = [
        _load(path, id_, namespace, deadline, threaded=is_there and is_on_disk(path))
        for id_, path in journals.items()
    ]
    backlogs = [backlog for backlog in loaded if backlog is not None]
    if not backlogs:
        return
    try:
        if is_there:
            for backlog in backlogs:
                _drop_manager_exits(backlog, publishes_exit)
            _deliver(backlogs, address, DELIVERY)
            if left := sum(map(len, backlogs)):
                log.warning("cannot deliver all events: the manager does not respond", left=left)
        else:
            fds = [backlog.fileno() for backlog in backlogs]
            fork(partial(_deliver, backlogs, address, BACKGROUND_DELIVERY), fds)
    finally:
        for backlog in backlogs:
            backlog.close()


def _load(
    journal: str, id_: str, namespace: str, deadline: float, *, threaded: bool
) -> Backlog | None:
    """Return the undelivered events; None if there are none or a daemon still owns them."""
    backlog = Backlog(journal, threaded=threaded)
    try:
        while (has_unpublished(journal) or is_waiting(journal)) and time.monotonic() < deadline:
            if backlog.load():
                add_unpublished(backlog, id_, namespace)
                return backlog
            time.sleep(_LOCK_INTERVAL)
    except FileNotFoundError:
        pass
    except OSError as exc:
        log.warning("the journal cannot be read", path=journal, error=exc)
    return None


def _drop_manager_exits(backlog: Backlog, publishes_exit: Callable[[str], bool]) -> None:
    """Drop the init exits that the manager publishes itself.

    It does not publish the exit of a task after a Delete has succeeded.
    """
    deleted = {
        TaskDelete.FromString(envelope.event.value).container_id
        for envelope in backlog.envelopes()
        if envelope.event.type_url == _DELETE
    }

    def wanted(envelope: Envelope) -> bool:
        if envelope.event.type_url != _EXIT:
            return True
        event = TaskExit.FromString(envelope.event.value)
        is_init = event.id == event.container_id
        return (
            not is_init or event.container_id in deleted or not publishes_exit(event.container_id)
        )

    backlog.retain(wanted)


def _deliver(backlogs: Sequence[Backlog], address: str, seconds: float) -> None:
    """Deliver for at most ``seconds``, and close the backlogs."""

    async def deliver() -> None:
        publisher = EventPublisher(address, "", backlogs, last_pause=_CONNECT_PAUSE)
        with trio.move_on_after(seconds):
            async with background(publisher.run):
                await publisher.flush()

    trio.run(deliver)
    for backlog in backlogs:
        backlog.close()
