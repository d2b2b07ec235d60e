"""Receive task events from shims that shimctl or the library launched.

A trio shim sends its events to the socket it was launched with, one at a time and in
order.  It keeps each event until the event is acknowledged.  The return of the handler
acknowledges the event.  If the handler raises, or takes longer than the 10 s that the
shim waits, the event is not acknowledged and the shim sends it again.

So a handler may receive an event twice, if the first acknowledgement did not reach the
shim: the handler took too long, its process was killed, or the connection broke.  Both
copies are equal, including the time.  The same shim sends no other event in between,
and never repeats an acknowledged event.

A shim that containerd launched sends its events to containerd; see ``ctr events``.

Source: containerd api/services/ttrpc/events/v1.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api.forward_grpc import EventsBase
from shim.errors import InvalidError, UnavailableError
from shim.linux import sockets
from shim.ttrpc.services import handlers_of, unary
from shimctl.backend import TRIO
from shimctl.topics import event_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Iterator

    import trio
    from grpclib.const import Handler

    from shim.api.forward_pb2 import ForwardRequest
    from shimctl.topics import Event

DRAIN = 10  # s to wait at the end for a handler that still runs in a thread
_LONGEST = 107  # the most bytes of a unix socket's path


async def serve_events(
    path: str | Path,
    handler: Callable[[Event], Awaitable[object]],
    *,
    task_status: trio.TaskStatus[None] | None = None,
) -> None:
    """Listen on ``path`` and call ``handler`` with each event, until cancelled.

    ``await nursery.start(serve_events, path, handler)`` returns when it listens.
    The handler receives the events of one shim one at a time, those of several shims
    concurrently.  An exception of the handler is logged with ``logging``, as "shimctl",
    and the shim sends the event again.  Cancelling also cancels the handler; its event
    is then not acknowledged.

    This replaces the socket of a dead process, and removes its own socket at the end.
    Only our own user may connect.  A malformed request affects only its own connection.

    :raises ExistsError: another process listens on ``path``.
    :raises InvalidError: the path is too long, exists and is no socket, or lies below a file.
    """
    import trio

    from shim.ttrpc.server import serve

    TRIO.check()
    with listening(path) as listener:
        async with trio.SocketListener(trio.socket.from_stdlib_socket(listener)) as accepting:
            if task_status is not None:
                task_status.started()
            await serve(accepting, handlers_for(handler), shutdown=trio.Event(), drain=DRAIN)


@contextmanager
def listening(path: str | Path) -> Iterator[socket.socket]:
    """Bind a socket that only our user may use; remove it after the block.

    :raises ExistsError: another process listens on ``path``.
    :raises InvalidError: the path is too long, exists and is no socket, or lies below a file.
    :raises UnavailableError: the directory cannot be written to.
    """
    whole = os.path.abspath(path)  # noqa: PTH100 - pathlib does not remove dots
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
            # Another process may have removed our socket and bound its own.
            with suppress(FileNotFoundError):
                if os.path.samestat(ours, os.lstat(whole)):
                    Path(whole).unlink()


def handlers_for(handler: Callable[[Event], Awaitable[object]]) -> dict[str, Handler]:
    """Return the methods of an Events service that calls ``handler`` with each event."""
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
            import logging  # late: only a failure needs it

            logging.getLogger("shimctl").exception("event %s: the handler failed", event.topic)
            # Always UNAVAILABLE: with some statuses the shim would discard the event.
            raise GRPCError(Status.UNAVAILABLE, f"the handler failed: {exc}") from exc
        return Empty()
