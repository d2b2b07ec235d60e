"""The receiving end of task events, for shims that no containerd listens to.

A shim sends its events to the socket it was launched with, and counts one as
delivered when the handler here has returned.  A shim that containerd launched
sends to containerd; see ``ctr events`` for those.

Source: containerd api/services/ttrpc/events/v1 and api/events/task.proto.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime  # noqa: TC003 - a dataclass's own annotation
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message

from shim.api import events_pb2
from shim.api.forward_grpc import EventsBase
from shim.linux import sockets
from shim.ttrpc.server import handlers_of, serve, unary
from shimctl.values import time_of, type_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from shim.api.envelope_pb2 import Envelope
    from shim.api.forward_pb2 import ForwardRequest

_DRAIN = 1  # s for a handler that is still running when we leave


@dataclass(frozen=True, slots=True)
class Event:
    """One event.  ``fields`` are those of the message ``type``, named as in its .proto.

    ``fields`` is empty for a type we do not know.  ``at`` is None only if the
    shim sent no time.
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
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen on ``path`` and call ``handler`` with each event, until cancelled.

    A shim waits for ``handler``, and sends the event again if it raises.  The
    socket is removed on the way out.  Only our own user may connect.

    :raises ExistsError: somebody already listens there.
    """
    listener = sockets.listen(f"unix://{path}")
    try:
        async with trio.SocketListener(trio.socket.from_stdlib_socket(listener)) as listening:
            task_status.started()
            await serve(
                listening,
                handlers_of(_Events(handler)),
                shutdown=trio.Event(),
                drain=_DRAIN,
            )
    finally:
        with suppress(FileNotFoundError):
            Path(path).unlink()


class _Events(EventsBase):
    def __init__(self, handler: Callable[[Event], Awaitable[object]]) -> None:
        self._handler = handler

    @unary
    async def Forward(self, request: ForwardRequest) -> Empty:  # noqa: N802 - the .proto's name
        await self._handler(event_of(request.envelope))
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
        message = kind.FromString(value)
    except DecodeError:
        return {}
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
