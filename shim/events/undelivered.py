"""What a daemon that is gone did not deliver, told by the ``delete`` of its container.

Whether the manager tells the end of a container itself, from what ``delete``
answers, depends on what it knows.  One that had the task at hand does, unless
Delete was answered before.  One that has just started does not: it looks for the
shims of its former life before it knows any task, and before it takes events.
So who listens is told all but the ends that it tells itself, before it has our
answer and can tell them.  Who does not listen yet is told everything, by a
process that we leave behind.

Source: containerd core/runtime/v2/shim.go cleanupAfterDeadShim and delete,
shim_load.go loadShim; cmd/containerd/command/main.go for when it listens.
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
from shim.linux.sockets import can_connect
from shim.scope import background

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.api.envelope_pb2 import Envelope

# Seconds for a manager that listens, of the time that it gives ``delete``.
DELIVERY = 1.0
# Seconds for one that is starting, and may have many more shims to look for.
BACKGROUND_DELIVERY = 60.0
# Seconds between two looks at whether the daemon, which was asked to end, has ended,
# and at most between two at whether the manager listens.
_LOCK_INTERVAL = 0.01
_CONNECT_PAUSE = 0.1
_EXIT, _DELETE = TaskExit.DESCRIPTOR.full_name, TaskDelete.DESCRIPTOR.full_name


def deliver_undelivered(
    journal: str,
    address: str,
    *,
    publishes_exit: Callable[[str], bool],
    fork: Callable[[Callable[[], object], int], None],
) -> None:
    """Deliver what waits in ``journal`` to the manager at ``address``, in a second or two.

    ``publishes_exit`` says of a container id whether the manager calls ``delete``
    for it, and so tells its end.  ``later`` is given what takes longer, to do it
    in another process, which needs one fd of ours.
    """
    if not address:
        return
    is_there = can_connect(address_of(address))
    try:
        # The process that tells later would lack a thread; it may wait for a disk itself.
        backlog = _load(journal, threaded=is_there and is_on_disk(journal))
    except FileNotFoundError:
        return
    except OSError as exc:
        log.warning("the journal cannot be read", path=journal, error=exc)
        return
    if backlog is None:
        return
    try:
        if is_there:
            _drop_manager_exits(backlog, publishes_exit)
            _deliver(backlog, address, DELIVERY)
            if backlog:
                log.warning("the manager does not take its events", left=len(backlog))
        else:
            fork(partial(_deliver, backlog, address, BACKGROUND_DELIVERY), backlog.fileno())
    finally:
        backlog.close()


def _load(journal: str, *, threaded: bool) -> Backlog | None:
    """Return what waits, or None if nothing does or the daemon is there to tell it."""
    deadline = time.monotonic() + DELIVERY
    backlog = Backlog(journal, threaded=threaded)
    while is_waiting(journal) and time.monotonic() < deadline:
        if backlog.load():
            return backlog
        time.sleep(_LOCK_INTERVAL)
    return None


def _drop_manager_exits(backlog: Backlog, publishes_exit: Callable[[str], bool]) -> None:
    """Let go of the ends that the manager tells.  Whose Delete was answered, it has forgotten."""
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


def _deliver(backlog: Backlog, address: str, seconds: float) -> None:
    """Deliver for some seconds, and let go of the backlog."""

    async def deliver() -> None:
        publisher = EventPublisher(address, "", backlog, last_pause=_CONNECT_PAUSE)
        with trio.move_on_after(seconds):
            async with background(publisher.run):
                await publisher.flush()

    trio.run(deliver)
    backlog.close()
