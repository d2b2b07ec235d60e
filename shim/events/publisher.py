"""Publishes events to the manager: in order, one at a time, each until it is acknowledged.

While the manager is away, events are queued; ``shim.events.backlog`` is the queue.
The events that an earlier daemon of the same bundle did not deliver go first.

An event whose acknowledgement was lost is sent again: the same event, with the same
timestamp.

Source: containerd core/events/exchange validateEnvelope, for the events it accepts.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.timestamp_pb2 import Timestamp
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim import log
from shim.api.envelope_pb2 import Envelope
from shim.api.forward_grpc import EventsStub
from shim.api.forward_pb2 import ForwardRequest
from shim.errors import ShimError
from shim.events.backlog import Backlog
from shim.events.topics import topic_of
from shim.linux.libc import is_in_memory
from shim.linux.sockets import connect
from shim.scope import background
from shim.ttrpc.client import open_channel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.message import Message

# Seconds for the manager to acknowledge one event.
ACKNOWLEDGE = 10.0
# Seconds before the next attempt: doubled from the first to the longest.
_FIRST_PAUSE, _LAST_PAUSE = 0.05, 2.0
# Seconds that an idle connection is kept: the events of a busy container share it,
# and an idle daemon has none.
_IDLE_CONNECTION = 5.0
# Statuses of a manager that will never accept this event.
_REFUSED = (Status.INVALID_ARGUMENT, Status.UNIMPLEMENTED)


class Publisher(Protocol):
    """Publishes a container's events.  Never waits and never raises."""

    @property
    def waiting(self) -> int:
        """The number of events that the manager has not acknowledged."""

    def publish(self, event: Message) -> None: ...


class NullPublisher:
    """For a manager that passes no address because it takes no events (CRI-O)."""

    waiting = 0

    def publish(self, event: Message) -> None:
        """Drop ``event``."""

    async def flush(self) -> None:
        """Return at once: no event is queued."""


class EventPublisher:
    """Queues events in a backlog and delivers them.  Use :func:`open_publisher`."""

    def __init__(
        self, address: str, namespace: str, backlog: Backlog, *, last_pause: float = _LAST_PAUSE
    ) -> None:
        self._last_pause = last_pause
        self._address = address_of(address)
        self._namespace = namespace
        self._backlog = backlog
        self._more = trio.Event()
        self._empty = trio.Event()
        if not backlog:
            self._empty.set()

    @property
    def waiting(self) -> int:
        """The number of events that the manager has not acknowledged."""
        return len(self._backlog)

    def publish(self, event: Message) -> None:
        """Queue ``event`` for delivery, with the current time as its timestamp."""
        name = event.DESCRIPTOR.full_name
        now = time.time_ns()
        envelope = Envelope(
            timestamp=Timestamp(seconds=now // 10**9, nanos=now % 10**9),
            namespace=self._namespace,
            topic=topic_of(event),
            event=AnyMessage(type_url=name, value=event.SerializeToString()),
        )
        self._backlog.append(envelope)
        self._empty = trio.Event() if self._empty.is_set() else self._empty
        self._more.set()

    async def flush(self) -> None:
        """Wait without a limit until every published event has been acknowledged."""
        await self._empty.wait()

    async def run(self) -> None:
        """Deliver queued events until cancelled."""
        pause = _FIRST_PAUSE
        while True:
            await self._wait_more()
            try:
                async with (
                    await connect(self._address) as stream,
                    open_channel(stream) as channel,
                ):
                    stub = EventsStub(channel)
                    while await self._wait_more(_IDLE_CONNECTION):
                        await self._deliver_first(stub)
                        pause = _FIRST_PAUSE
            except (OSError, ShimError, GRPCError, ExceptionGroup) as exc:
                log.debug("cannot deliver events", error=exc, waiting=self.waiting)
                self._backlog.retry()
                await trio.sleep(pause)
                pause = min(2 * pause, self._last_pause)

    async def _wait_more(self, timeout: float = float("inf")) -> bool:
        """Wait up to ``timeout`` seconds for an event; return whether one is queued."""
        if not self._backlog:
            self._more = trio.Event()
            with trio.move_on_after(timeout):
                await self._more.wait()
        return bool(self._backlog)

    async def _deliver_first(self, stub: EventsStub) -> None:
        envelope = self._backlog.first
        try:
            await stub.Forward(ForwardRequest(envelope=envelope), timeout=ACKNOWLEDGE)
        except GRPCError as exc:
            if exc.status not in _REFUSED:
                raise
            log.error(
                "cannot deliver an event: the manager refused it",
                topic=envelope.topic,
                error=exc.message,
            )
        self._backlog.acknowledge()
        if not self._backlog:
            self._empty.set()


def is_on_disk(journal: str) -> bool:
    """Return whether a write to the file ``journal`` may wait for a disk; False for no path."""
    return bool(journal) and not is_in_memory(journal.rpartition("/")[0])


def address_of(text: str) -> str:
    """Return the address of the manager's events socket; managers pass a path without unix://."""
    return f"unix://{text.removeprefix('unix://')}"


@asynccontextmanager
async def open_publisher(
    address: str, namespace: str, journal: str = ""
) -> AsyncIterator[EventPublisher | NullPublisher]:
    """Deliver events to ``address`` (a path, ``unix://`` optional) for the block.

    With an empty address all events are dropped.  Unless ``journal`` is empty,
    undelivered events are also kept in that file, and the events that it already
    has are delivered first.
    """
    if not address:
        yield NullPublisher()
        return
    backlog = Backlog(journal, threaded=is_on_disk(journal))
    try:
        if not backlog.load():
            log.warning(
                "cannot own the journal yet: another process has the journal", path=journal
            )
    except OSError as exc:
        log.warning("the journal cannot be read", path=journal, error=exc)
    publisher = EventPublisher(address, namespace, backlog)
    try:
        async with background(publisher.run):
            yield publisher
    finally:
        backlog.close()
