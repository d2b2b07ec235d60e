"""The receiving end of task events, for shims that no containerd listens to.

A shim sends its events to the socket it was launched with, one at a time and in
order, and keeps each until it is acknowledged, however long that takes.  It is
acknowledged when the handler has returned.  A handler that raises, or takes longer
than the 10 s that a shim waits, has not acknowledged it: the shim sends it again.

So an event may come twice, when a handler did its work and could not say so: its
time was up, its process was killed, the connection broke.  Both are the same, down
to the time, and compare equal.  Nothing else than that one comes in between from
the same shim, and an event that was acknowledged never comes again.

A shim that containerd launched sends to containerd; see ``ctr events`` for those.

Source: containerd api/services/ttrpc/events/v1 and api/events/task.proto.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime  # noqa: TC003 - a dataclass's own annotation
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import MessageToDict, SerializeToJsonError
from google.protobuf.message import DecodeError, Message
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api import events_pb2
from shim.api.forward_grpc import EventsBase
from shim.errors import InvalidError, UnavailableError
from shim.linux import sockets
from shim.ttrpc.services import handlers_of, unary
from shimctl.values import time_of, type_name

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Iterator

    import trio
    from grpclib.const import Handler

    from shim.api.envelope_pb2 import Envelope
    from shim.api.forward_pb2 import ForwardRequest

DRAIN = 10  # s for a handler that is still running when we leave, in a thread
_LONGEST = 107  # bytes of a path that a socket can have


@dataclass(frozen=True, slots=True)
class Event:
    """One event.  ``fields`` are those of the message ``type``, named as in its .proto.

    Their values are those of protobuf's JSON: numbers up to 32 bits are ints, larger
    ones strings, and a time is a string too, ``2023-11-14T22:13:20.5Z``.

    ``fields`` is empty for a type we do not know, or cannot read.  ``at`` is None only
    if the shim sent no time.
    """

    at: datetime | None
    namespace: str
    topic: str
    type: str
    fields: dict[str, Any]


async def serve_events(
    path: str | Path,
    handler: Callable[[Event], Awaitable[object]],
    *,
    task_status: trio.TaskStatus[None] | None = None,
) -> None:
    """Listen on ``path`` and call ``handler`` with each event, until cancelled.

    ``await nursery.start(serve_events, path, handler)`` returns once it listens.
    Events of one shim come one by one, those of several shims beside each other.
    What the handler raises is logged by ``logging``, as "shimctl", and the event comes
    again.  Cancelling cancels the handler too, and what it was at is not acknowledged.

    A dead process's socket is replaced; ours is removed on the way out.  Only our
    own user may connect, and a peer that talks nonsense harms no other.

    :raises ExistsError: somebody already listens there.
    :raises InvalidError: the path is too long, another file than a socket, or below one.
    """
    import trio

    from shim.ttrpc.server import serve

    with listening(path) as listener:
        async with trio.SocketListener(trio.socket.from_stdlib_socket(listener)) as accepting:
            if task_status is not None:
                task_status.started()
            await serve(accepting, handlers_for(handler), shutdown=trio.Event(), drain=DRAIN)


@contextmanager
def listening(path: str | Path) -> Iterator[socket.socket]:
    """Bind a socket that only our user may use; remove it after the block.

    :raises ExistsError: somebody already listens there.
    :raises InvalidError: the path is too long, another file than a socket, or below one.
    :raises UnavailableError: the directory cannot be written to.
    """
    whole = os.path.abspath(path)  # noqa: PTH100 - pathlib does not take out the dots
    if (length := len(os.fsencode(whole))) > _LONGEST:
        raise InvalidError(f"{whole} has {length} bytes; a socket's path has at most {_LONGEST}")
    try:
        listener = sockets.listen(f"unix://{whole}")
    except OSError as exc:
        raise UnavailableError(f"cannot listen on {whole}: {exc.strerror or exc}") from None
    with listener:
        ours = os.lstat(whole)
        try:
            yield listener
        finally:
            # Somebody may have taken ours away and put theirs in its place.
            with suppress(FileNotFoundError):
                if os.path.samestat(ours, os.lstat(whole)):
                    Path(whole).unlink()


def handlers_for(handler: Callable[[Event], Awaitable[object]]) -> dict[str, Handler]:
    """Return the methods of the Events service that hands its events to ``handler``."""
    return handlers_of(_Events(handler))


class _Events(EventsBase):
    def __init__(self, handler: Callable[[Event], Awaitable[object]]) -> None:
        self._handler = handler

    @unary
    async def Forward(self, request: ForwardRequest) -> Empty:  # noqa: N802 - the .proto's name
        event = event_of(request.envelope)
        try:
            await self._handler(event)
        except Exception as exc:
            import logging  # takes longer to load than most handlers run

            logging.getLogger("shimctl").exception("event %s: the handler failed", event.topic)
            # Whatever it is: some statuses would tell the shim to forget the event.
            raise GRPCError(Status.UNAVAILABLE, f"the handler failed: {exc}") from exc
        return Empty()


def event_of(envelope: Envelope) -> Event:
    """Decode an envelope; what is inside may be of a type we do not know."""
    name = type_name(envelope.event)
    return Event(
        at=time_of(envelope.timestamp),
        namespace=envelope.namespace,
        topic=envelope.topic,
        type=name,
        fields=_fields(name, envelope.event.value),
    )


def _fields(name: str, value: bytes) -> dict[str, Any]:
    package, _, short = name.rpartition(".")
    kind = getattr(events_pb2, short, None)
    if package != "containerd.events" or not isinstance(kind, type(Message)):
        return {}
    try:
        return MessageToDict(
            kind.FromString(value),
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
    except (DecodeError, SerializeToJsonError):  # of a time that is none, say
        return {}
