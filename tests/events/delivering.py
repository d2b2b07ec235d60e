"""A manager that takes events, and a publisher with a journal in a directory of the test."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio
import trio.lowlevel
from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api.events_pb2 import TaskStart
from shim.api.forward_grpc import EventsBase
from shim.events.backlog import Backlog
from shim.events.encoding import decode
from shim.events.publisher import EventPublisher, EventSource, open_publisher
from shim.linux.sockets import listen
from shim.ttrpc.server import handlers_of, serve, unary

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from shim.api.envelope_pb2 import Envelope
    from shim.api.forward_pb2 import ForwardRequest


class Manager(EventsBase):
    """Takes events, except the first ``refuse`` of them, for which it has ``status``."""

    def __init__(self, refuse: int = 0, status: Status = Status.UNAVAILABLE) -> None:
        self.got: list[Envelope] = []
        self.calls = 0
        self._refuse = refuse
        self._status = status

    @unary
    async def Forward(self, request: ForwardRequest) -> Empty:
        self.calls += 1
        if self.calls <= self._refuse:
            raise GRPCError(self._status, "not now")
        self.got.append(request.envelope)
        return Empty()

    @property
    def pids(self) -> list[int]:
        return [TaskStart.FromString(e.event.value).pid for e in self.got]


async def deliver_two(path: Path, manager: EventsBase) -> None:
    """Publish the starts of the processes 1 and 2, and wait until both are acknowledged."""
    async with serving(path, manager), open_publisher(str(path), "ns") as publisher:
        for pid in (1, 2):
            publisher.open_source("").publish(TaskStart(pid=pid))
        with trio.fail_after(20):
            await publisher.flush()


@asynccontextmanager
async def serving(path: Path, manager: EventsBase) -> AsyncIterator[None]:
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listen(f"unix://{path}")))
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        run = partial(serve, listener, handlers_of(manager), shutdown=stop, drain=1)
        await nursery.start(run)
        try:
            yield
        finally:
            stop.set()
    path.unlink()


@asynccontextmanager
async def publishing(directory: Path) -> AsyncIterator[EventPublisher]:
    """Open the publisher that a daemon of this bundle opens."""
    opened = open_publisher(str(directory / "events"), "ns", str(directory / "events.journal"))
    async with opened as publisher:
        assert isinstance(publisher, EventPublisher)
        yield publisher


def source_of(publisher: EventPublisher) -> EventSource:
    """Return the source of the bundle for which the publisher was opened."""
    return publisher._sources[0]


def publish(publisher: EventPublisher, *pids: int) -> None:
    for pid in pids:
        source_of(publisher).publish(TaskStart(container_id="c1", pid=pid))


async def flush(publisher: EventPublisher) -> None:
    with trio.fail_after(60):
        await publisher.flush()


def waiting(directory: Path) -> list[int]:
    """Read the pids of the events that are left in the journal."""
    backlog = Backlog(str(directory / "events.journal"))
    assert backlog.load(), "somebody has it"
    try:
        return [TaskStart.FromString(one.event.value).pid for one in backlog.envelopes()]
    finally:
        backlog.close()


def waiting_count(directory: Path) -> int:
    """Count the records in a journal that a process owns."""
    return len(decode((directory / "events.journal").read_bytes()).waiting)
