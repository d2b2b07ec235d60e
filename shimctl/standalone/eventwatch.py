"""Watch the events of the host's containers: past ones, those of shimctl, those of containerd.

Past events come from the file of received events and from the journals of trio shims.
Live events come from the shims of ``shimctl`` through that file, and from containerd.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import trio
from google.protobuf.empty_pb2 import Empty

from shim.api.forward_grpc import EventsBase
from shim.errors import ExistsError, UnavailableError
from shim.linux.modes import make_trusted
from shim.scope import background
from shim.ttrpc.server import serve
from shim.ttrpc.services import handlers_of, unary
from shimctl.directories import events_socket, state_directory
from shimctl.events import DRAIN, listening
from shimctl.standalone import containerd
from shimctl.standalone.eventlog import EventLog, try_lock
from shimctl.standalone.journals import past_events
from shimctl.standalone.logfiles import Log
from shimctl.standalone.published import decode, published

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from shim.api.forward_pb2 import ForwardRequest
    from shimctl.standalone.eventfilter import Filter
    from shimctl.standalone.published import Published

POLL = 0.1  # s between two reads of the file, and two attempts to become the receiver
_LATE = 0.5  # s after the time of --until for events that were published before it


@dataclass(frozen=True, slots=True)
class Sources:
    """Where to look: more state directories and sockets of containerd."""

    states: Sequence[str | Path] = ()
    sockets: Sequence[str | Path] = ()


async def watch(
    wanted: Filter,
    handler: Callable[[Published], Awaitable[object]],
    failed: Callable[[str], object],
    sources: Sources = Sources(),
) -> None:
    """Call ``handler`` with each wanted event, until ``wanted.until`` or cancelled.

    With ``wanted.since`` past events come first, in the order of their times.  ``failed``
    is called with the text of a failure that does not end the watch.

    :raises ExistsError: another program than a watcher receives the events of shimctl.
    :raises UnavailableError: the file of received events cannot be written.
    """
    directory = state_directory()
    make_trusted(str(directory))
    file = directory / "events.log"
    with Log(file, rotated=True) as log:
        seen: set[bytes] = set()
        past = [event for line in log.lines() if (event := decode(line))]
        if wanted.since is not None:
            found = {event.encode(): event for event in past}
            for event in past_events(sources.states):
                found.setdefault(event.encode(), event)
            seen = set(found)
            # The sort is stable: events of one time keep the order in which they were sent.
            for event in sorted(found.values(), key=_time):
                if wanted.matches(event):
                    await handler(event)
        deadline = math.inf
        if wanted.until is not None:
            deadline = (wanted.until - datetime.now(UTC)).total_seconds()
        if deadline <= 0:
            return
        live = _Live(wanted, handler, seen)
        following = [
            partial(containerd.follow, path, live.handle, failed)
            for path in containerd.sockets(sources.states, sources.sockets)
        ]
        with trio.move_on_after(deadline + _LATE):
            async with background(partial(receive, directory), *following):
                while True:
                    for line in log.lines():
                        if event := decode(line):
                            await live.handle(event)
                    await trio.sleep(POLL)


def _time(event: Published) -> float:
    return event.at.timestamp() if event.at else 0


class _Live:
    """Hands on the wanted events that were not among the past ones, one at a time."""

    def __init__(
        self, wanted: Filter, handler: Callable[[Published], Awaitable[object]], seen: set[bytes]
    ) -> None:
        self._wanted = wanted
        self._handler = handler
        self._seen = seen

    async def handle(self, event: Published) -> None:
        if self._wanted.matches(event) and not (self._seen and event.encode() in self._seen):
            await self._handler(event)


async def receive(directory: Path) -> None:
    """Receive the events of shimctl's shims while no other watcher does, until cancelled.

    :raises ExistsError, UnavailableError: as :func:`watch`.
    """
    while True:
        with try_lock(directory / "events.lock") as locked:
            if locked:
                await _serve(directory)
        await trio.sleep(POLL)


async def _serve(directory: Path) -> None:
    file = directory / "events.log"
    log = EventLog(file)
    try:
        with listening(events_socket()) as listener, trio.CancelScope() as serving:
            service = _Receiver(log, serving)
            async with trio.SocketListener(trio.socket.from_stdlib_socket(listener)) as accepting:
                await serve(accepting, handlers_of(service), shutdown=trio.Event(), drain=DRAIN)
    except ExistsError:
        raise ExistsError(
            f"another program receives the events on {events_socket()}; end it to see them here"
        ) from None
    finally:
        log.close()
    if service.failure is not None:
        reason = service.failure.strerror or service.failure
        raise UnavailableError(f"cannot keep the events in {file}: {reason}")


class _Receiver(EventsBase):
    """Appends each event to the file, and acknowledges it then; a failure ends the service."""

    def __init__(self, log: EventLog, serving: trio.CancelScope) -> None:
        self.failure: OSError | None = None
        self._log = log
        self._serving = serving

    @unary
    async def Forward(self, request: ForwardRequest) -> Empty:  # noqa: N802 - the .proto's name
        try:
            self._log.append(published(request.envelope))
        except OSError as exc:
            self.failure = exc
            self._serving.cancel()
            await trio.sleep_forever()  # the shim keeps an event without a reply
        return Empty()
