"""Tells the manager what happened: in order, one at a time, until it says it heard.

The queue has no limit in time: while the manager is away, events wait.  It has
one in number, past which the oldest event that is not an exit goes first.

An event that the manager received and whose acknowledgement got lost is sent
again; it is the same event, with the same timestamp.

Source: containerd core/events/exchange validateEnvelope for what is accepted.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.timestamp_pb2 import Timestamp
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim import log
from shim.api.envelope_pb2 import Envelope
from shim.api.events_pb2 import TaskExit
from shim.api.forward_grpc import EventsStub
from shim.api.forward_pb2 import ForwardRequest
from shim.errors import ShimError
from shim.events.topics import topic_of
from shim.linux.sockets import connect
from shim.scope import background
from shim.ttrpc.client import open_channel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.message import Message

# Events kept while nobody takes them: about 5 MiB.
LIMIT = 20_000
# Seconds the manager has to acknowledge one event.
ACKNOWLEDGE = 10.0
# Seconds before the next attempt: doubled from the first to the last.
_FIRST_PAUSE, _LAST_PAUSE = 0.05, 2.0
# Seconds an idle connection is kept: the next event of a busy container
# finds it open, and an idle shim holds none.
_LINGER = 5.0
# The manager understood, and will never accept this event.
_REFUSED = (Status.INVALID_ARGUMENT, Status.UNIMPLEMENTED)


class Publisher(Protocol):
    """Where a container's events go.  Never waits, never fails."""

    def publish(self, event: Message) -> None: ...


class NullPublisher:
    """For a manager that gave no address: it does not want events (CRI-O)."""

    def publish(self, event: Message) -> None:
        """Forget ``event``."""

    async def flush(self) -> None:
        """Return: there is never anything left to send."""


class EventPublisher:
    """An ordered queue and the task that empties it.  Use :func:`open_publisher`."""

    def __init__(self, address: str, namespace: str) -> None:
        # Here, unlike anywhere else, a bare path is what managers give.
        self._address = f"unix://{address.removeprefix('unix://')}"
        self._namespace = namespace
        self._queue: deque[Envelope] = deque()
        self._more = trio.Event()
        self._empty = trio.Event()
        self._empty.set()

    def publish(self, event: Message) -> None:
        """Queue ``event`` for delivery, stamped with the time it is now."""
        name = event.DESCRIPTOR.full_name
        now = time.time_ns()
        envelope = Envelope(
            timestamp=Timestamp(seconds=now // 10**9, nanos=now % 10**9),
            namespace=self._namespace,
            topic=topic_of(event),
            event=AnyMessage(type_url=name, value=event.SerializeToString()),
        )
        self._queue.append(envelope)
        if len(self._queue) > LIMIT:
            self._forget_one()
        self._empty = trio.Event() if self._empty.is_set() else self._empty
        self._more.set()

    async def flush(self) -> None:
        """Wait until everything published so far has been acknowledged.  Bound it."""
        await self._empty.wait()

    def _forget_one(self) -> None:
        # The first one may be on its way at this moment.
        exit_name = TaskExit.DESCRIPTOR.full_name
        for index in range(1, len(self._queue)):
            if self._queue[index].event.type_url != exit_name:
                break
        else:
            index = 1
        log.warning("event dropped: the queue is full", topic=self._queue[index].topic)
        del self._queue[index]

    async def run(self) -> None:
        """Deliver for as long as this runs."""
        pause = _FIRST_PAUSE
        while True:
            await self._wait_more()
            try:
                async with (
                    await connect(self._address) as stream,
                    open_channel(stream) as channel,
                ):
                    stub = EventsStub(channel)
                    while await self._wait_more(_LINGER):
                        await self._deliver_first(stub)
                        pause = _FIRST_PAUSE
            except (OSError, ShimError, GRPCError, ExceptionGroup) as exc:
                log.debug("the manager takes no events", error=exc, waiting=len(self._queue))
                await trio.sleep(pause)
                pause = min(2 * pause, _LAST_PAUSE)

    async def _wait_more(self, patience: float = float("inf")) -> bool:
        """Wait until there is something to send; say whether there is."""
        if not self._queue:
            self._more = trio.Event()
            with trio.move_on_after(patience):
                await self._more.wait()
        return bool(self._queue)

    async def _deliver_first(self, stub: EventsStub) -> None:
        envelope = self._queue[0]
        try:
            await stub.Forward(ForwardRequest(envelope=envelope), timeout=ACKNOWLEDGE)
        except GRPCError as exc:
            if exc.status not in _REFUSED:
                raise
            log.error("the manager refused an event", topic=envelope.topic, error=exc.message)
        self._queue.popleft()
        if not self._queue:
            self._empty.set()


@asynccontextmanager
async def open_publisher(
    address: str, namespace: str
) -> AsyncIterator[EventPublisher | NullPublisher]:
    """Deliver events to ``address`` (a path, ``unix://`` optional) for the block.

    An empty address means that nobody wants any.
    """
    if not address:
        yield NullPublisher()
        return
    publisher = EventPublisher(address, namespace)
    async with background(publisher.run):
        yield publisher
