"""Publishes events to the manager: in order, one at a time, each until it is acknowledged.

While the manager is away, events are queued; ``shim.events.backlog`` is the queue of one
container.  Of all queues the oldest event is sent next.  The events that an earlier daemon
of a bundle did not deliver precede those of the next one.

An event whose acknowledgement was lost is sent again: the same event, with the same
timestamp.

Source: containerd core/events/exchange validateEnvelope, for the events it accepts.
"""

from __future__ import annotations

import os
import time
from contextlib import asynccontextmanager
from operator import attrgetter
from typing import TYPE_CHECKING

import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.timestamp_pb2 import Timestamp
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim import log
from shim.api.envelope_pb2 import Envelope
from shim.errors import ShimError
from shim.events.backlog import Backlog
from shim.events.forwarding import Forwardings
from shim.events.source import NullPublisher
from shim.events.topics import topic_of
from shim.linux.libc import is_in_memory
from shim.recovery.deposit import Deposit
from shim.scope import background

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from google.protobuf.message import Message

    from shim.events.forwarding import Forwarding
    from shim.recovery.inherited import Inherited

# Seconds before the next attempt: doubled from the first to the longest.
_FIRST_PAUSE, _LAST_PAUSE = 0.05, 2.0
# Seconds that an idle connection is kept: the events of a busy container share it,
# and an idle daemon has none.
_IDLE_CONNECTION = 5.0
# Statuses of a manager that will never accept this event.
_REFUSED = (Status.INVALID_ARGUMENT, Status.UNIMPLEMENTED)


class EventSource:
    """The events of one container, queued in ``backlog``: see :meth:`EventPublisher.open_source`.

    ``is_closed`` is set by :meth:`close`.  ``kept`` is the fd of the journal of which the
    deposit has a copy under ``name``, -1 without one.
    """

    def __init__(self, publisher: EventPublisher, backlog: Backlog) -> None:
        self.backlog = backlog
        self.is_closed = False
        self.kept = -1
        self.name = ""
        self._publisher = publisher

    def publish(self, event: Message) -> None:
        """As :meth:`Source.publish`."""
        self._publisher.queue(self, self._publisher.envelope(event))

    def seal(self, event: Message) -> bytes:
        """As :meth:`Source.seal`."""
        return self._publisher.envelope(event).SerializeToString()

    def post(self, envelope: bytes) -> bool:
        """As :meth:`Source.post`."""
        self._publisher.queue(self, Envelope.FromString(envelope))
        return self.backlog.has_last

    def before_forgetting(self, call: Callable[[], None]) -> None:
        """As :meth:`Source.before_forgetting`."""
        self.backlog.before_forgetting(call)

    def has(self, envelope: bytes) -> bool:
        """As :meth:`Source.has`."""
        return self.backlog.last_loaded == envelope

    def close(self) -> None:
        """Close the journal once the manager has acknowledged every event.

        An event may still follow: an exec can exit after its container was deleted.
        """
        self.is_closed = True
        self._publisher.forget_closed()


class EventPublisher:
    """Delivers the events of its sources.  Use :func:`open_publisher`."""

    def __init__(
        self,
        address: str,
        namespace: str,
        backlogs: Iterable[Backlog] = (),
        *,
        last_pause: float = _LAST_PAUSE,
        deposit: Deposit | None = None,
        inherited: Inherited | None = None,
    ) -> None:
        self._last_pause = last_pause
        self._deposit = deposit or Deposit()
        self._forwardings = Forwardings(address_of(address), deposit, inherited)
        self._begin = trio.Event()
        if inherited is None:
            self._begin.set()
        self._namespace = namespace
        self._sources = [EventSource(self, backlog) for backlog in backlogs]
        self._journals = 0
        if inherited is not None:
            for name, fd in inherited.take_all(_JOURNAL).items():
                self._sources.append(self._adopted(_JOURNAL + name, fd))
        self._more = trio.Event()
        self._empty = trio.Event()
        if not self.waiting:
            self._empty.set()

    @property
    def waiting(self) -> int:
        """The number of events that the manager has not acknowledged."""
        return sum(len(source.backlog) for source in self._sources)

    def open_source(self, journal: str) -> EventSource:
        """Return the source of the events that are kept in the file ``journal``.

        The undelivered events in the file are delivered first.  With an empty path the
        events are in memory only.
        """
        for source in self._sources:
            if source.backlog.is_of(journal):
                source.is_closed = False
                return source
        backlog = Backlog(journal, threaded=is_on_disk(journal))
        try:
            if not backlog.load():
                log.warning(
                    "cannot own the journal yet: another process has the journal", path=journal
                )
        except OSError as exc:
            log.warning("the journal cannot be read", path=journal, error=exc)
        source = EventSource(self, backlog)
        self._sources.append(source)
        if backlog:
            self._note_more()
        return source

    def envelope(self, event: Message) -> Envelope:
        """Return ``event`` with the current time as its timestamp."""
        name = event.DESCRIPTOR.full_name
        now = time.time_ns()
        return Envelope(
            timestamp=Timestamp(seconds=now // 10**9, nanos=now % 10**9),
            namespace=self._namespace,
            topic=topic_of(event),
            event=AnyMessage(type_url=name, value=event.SerializeToString()),
        )

    def queue(self, source: EventSource, envelope: Envelope) -> None:
        """Queue an event of ``source``."""
        source.backlog.append(envelope)
        self._keep(source)
        if source not in self._sources:  # it was closed
            self._sources.append(source)
        self._note_more()

    def _keep(self, source: EventSource) -> None:
        """Leave a copy of the journal's file, which a manager may remove with its bundle."""
        if self._deposit.is_active and (fd := source.backlog.fileno()) != source.kept:
            if not source.name:
                # Unique, since a new bundle may have the path of one with events left.
                self._journals += 1
                source.name = journal_name(self._journals, source.backlog.path)
            source.kept = fd
            self._deposit.put({source.name: fd})

    def _adopted(self, name: str, fd: int) -> EventSource:
        """Return the source of a journal that a killed daemon had open.

        It is closed after its last event, unless :meth:`open_source` opens it again.
        """
        number, path = journal_of(name)
        self._journals = max(self._journals, number)
        backlog = Backlog(path)
        try:
            backlog.adopt(fd)
        except OSError as exc:
            log.warning("the journal cannot be read", path=path, error=exc)
        source = EventSource(self, backlog)
        source.is_closed, source.kept, source.name = True, backlog.fileno(), name
        return source

    def _note_more(self) -> None:
        self._empty = trio.Event() if self._empty.is_set() else self._empty
        self._more.set()

    def forget_closed(self) -> None:
        """Close the journals of closed sources without an event."""
        for source in [one for one in self._sources if one.is_closed and not one.backlog]:
            self._sources.remove(source)
            source.backlog.close()
            if source.name:
                self._deposit.drop(source.name)
                source.kept, source.name = -1, ""

    def close(self) -> None:
        """Close all journals; the undelivered events stay in them."""
        for source in self._sources:
            source.backlog.close()

    async def flush(self) -> None:
        """Wait without a limit until every published event has been acknowledged."""
        await self._empty.wait()

    def begin(self) -> None:
        """Deliver from now on: the queues of a killed daemon have been opened."""
        self._begin.set()

    async def run(self) -> None:
        """Deliver queued events until cancelled."""
        pause = _FIRST_PAUSE
        await self._begin.wait()
        while True:
            if not self._forwardings.has_inherited:
                await self._wait_more()
            try:
                async with self._forwardings.open() as forwarding:
                    while await self._wait_more(_IDLE_CONNECTION):
                        await self._deliver_first(forwarding)
                        pause = _FIRST_PAUSE
            except (OSError, ShimError, GRPCError, ExceptionGroup) as exc:
                log.debug("cannot deliver events", error=exc, waiting=self.waiting)
                for source in self._sources:
                    source.backlog.retry()
                    self._keep(source)
                await trio.sleep(pause)
                pause = min(2 * pause, self._last_pause)

    async def _wait_more(self, timeout: float = float("inf")) -> bool:
        """Wait up to ``timeout`` seconds for an event; return whether one is queued."""
        if not self.waiting:
            self._more = trio.Event()
            with trio.move_on_after(timeout):
                await self._more.wait()
        return bool(self.waiting)

    async def _deliver_first(self, forwarding: Forwarding) -> None:
        waiting = [source.backlog for source in self._sources if source.backlog]
        backlog = min(waiting, key=attrgetter("first_number"))
        if begun := forwarding.begun:
            backlog = next((one for one in waiting if one.first_payload == begun), backlog)
        envelope = backlog.first
        try:
            await forwarding.forward(envelope)
        except GRPCError as exc:
            if exc.status not in _REFUSED:
                raise
            log.error(
                "cannot deliver an event: the manager refused it",
                topic=envelope.topic,
                error=exc.message,
            )
        backlog.acknowledge()
        forwarding.acknowledged()
        if not backlog:
            self.forget_closed()
        if not self.waiting:
            self._empty.set()


def is_on_disk(journal: str) -> bool:
    """Return whether a write to the file ``journal`` may wait for a disk; False for no path."""
    return bool(journal) and not is_in_memory(journal.rpartition("/")[0])


_JOURNAL = "journal/"


def journal_name(number: int, path: str) -> str:
    """Return the name in the deposit of the journal ``path``, the ``number``-th one."""
    # Names are UTF-8, and paths any bytes.
    return f"{_JOURNAL}{number}/{os.fsencode(path).decode('latin-1')}"


def journal_of(name: str) -> tuple[int, str]:
    """Return the number and the path of :func:`journal_name`."""
    number, _, path = name.removeprefix(_JOURNAL).partition("/")
    return int(number), os.fsdecode(path.encode("latin-1"))


def address_of(text: str) -> str:
    """Return the address of the manager's events socket; managers pass a path without unix://."""
    return f"unix://{text.removeprefix('unix://')}"


@asynccontextmanager
async def open_publisher(
    address: str,
    namespace: str,
    journal: str = "",
    *,
    deposit: Deposit | None = None,
    inherited: Inherited | None = None,
) -> AsyncIterator[EventPublisher | NullPublisher]:
    """Deliver events to ``address`` (a path, ``unix://`` optional) for the block.

    With an empty address all events are dropped.  Unless ``journal`` is empty, that file is
    the journal of the first source.  With an active ``deposit`` the delivery of an event
    goes on after the death of this process.  With the fds of a killed daemon in
    ``inherited``, nothing is delivered before :meth:`EventPublisher.begin`.
    """
    if not address:
        yield NullPublisher()
        return
    publisher = EventPublisher(address, namespace, deposit=deposit, inherited=inherited)
    if journal:
        publisher.open_source(journal)
    try:
        async with background(publisher.run):
            yield publisher
    finally:
        publisher.close()
