"""A ttrpc server on trio, and its rules: when a method runs, and when it is cancelled.

:mod:`shim.ttrpc.protocol` parses frames, the services implement the methods, and
:mod:`shim.ttrpc.connection` follows these rules:

- A call is cancelled at its deadline and when the server ends.  The methods named in
  ``cancellable`` (those that only wait) are also cancelled when the caller's connection
  ends, and at shutdown.  Those named in ``undoable`` are cancelled when the caller's
  connection ends, and the service undoes their work; at shutdown they finish.  All other
  methods run to their end, so that a manager that dies during a Start leaves no
  half-started process.
- The methods named in ``immediate`` never suspend: the reading task calls them directly.
  Their reply is sent in the same turn of the scheduler if no other reply is unsent; the
  writer sends the bytes that the socket does not take.
- When ``UNSENT_LIMIT`` bytes of replies are unsent, the server stops reading from that
  client.  It does not close the connection: containerd takes a closed connection for a
  dead shim and deletes the container; a stopped manager would do so when it continues.
- A connection has at most ``MAX_CALLS`` running calls; further ones are rejected.

Source: containerd/ttrpc server.go.  The first and the last rule differ on purpose: it
cancels every call when the connection ends, and does not limit their number.
"""

from __future__ import annotations

import functools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from shim import log
from shim.ttrpc.connection import MAX_CALLS, Connection, Methods
from shim.ttrpc.kept import ConnectionStore, KeptConnection, KeptListener, Record, Resumed
from shim.ttrpc.services import (
    UNSENT_LIMIT,
    PeerRefusedError,
    Servable,
    Stream,
    check_peer,
    handlers_of,
    recorded,
    replayable,
    unary,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Container, Mapping, Sequence

    from grpclib.const import Handler

__all__ = [
    "MAX_CALLS",
    "UNSENT_LIMIT",
    "ConnectionStore",
    "PeerRefusedError",
    "Record",
    "Resumed",
    "Servable",
    "Stream",
    "check_peer",
    "handlers_of",
    "recorded",
    "replayable",
    "serve",
    "serve_connection",
    "unary",
]


async def serve_connection(
    stream: trio.SocketStream,
    *,
    handlers: Mapping[str, Handler],
    cancellable: Container[str] = (),
    undoable: Container[str] = (),
    immediate: Container[str] = (),
    shutdown: trio.Event | None = None,
) -> None:
    """Own ``stream``, and answer the requests on it until the peer disconnects.

    ``cancellable``, ``undoable`` and ``immediate`` are short names of methods; those in
    ``immediate`` must be made by :func:`unary`.  If an immediate method suspends, its
    caller gets an error.  If it raises :class:`~shim.errors.MustWaitError`, it is called
    again in a task.

    Return when every call has ended.  After ``shutdown`` no new request is read,
    the methods in ``cancellable`` are cancelled, and the other calls finish and their
    replies are sent.
    """
    methods = Methods.of(handlers, cancellable, undoable, immediate)
    await Connection(stream, methods).run(shutdown)


async def serve(
    listener: trio.SocketListener,
    handlers: Mapping[str, Handler],
    *,
    shutdown: trio.Event,
    drain: float,
    cancellable: Container[str] = (),
    undoable: Container[str] = (),
    immediate: Container[str] = (),
    store: ConnectionStore | None = None,
    resumed: Sequence[Resumed] = (),
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Own ``listener``, and serve our own user's processes on it until ``shutdown``.

    Running calls then have ``drain`` seconds to finish, and are cancelled after that.
    With ``store`` the connections go on after the death of this process; ``resumed``, owned
    by the call, are those of a server that was killed.
    """
    methods = Methods.of(handlers, cancellable, undoable, immediate)
    kept = KeptListener(listener, store) if store is not None else None

    async def converse(stream: trio.SocketStream) -> None:
        async with _reported(stream):
            if kept is None:
                check_peer(stream.socket)
            elif (record := kept.records.pop(stream, None)) is not None:
                await KeptConnection(stream, methods, record).run(shutdown)
                return
            await Connection(stream, methods).run(shutdown)

    async def resume(one: Resumed) -> None:
        async with _reported(one.stream):
            try:  # the killed server may not have done so
                check_peer(one.stream.socket)
            except PeerRefusedError:
                one.record.close()
                raise
            await KeptConnection(one.stream, methods, one.record, resumed=True).run(shutdown)

    async with trio.open_nursery() as conversations:
        for one in resumed:
            conversations.start_soon(resume, one)
        async with trio.open_nursery() as accepting:
            accept = functools.partial(
                trio.serve_listeners, converse, [kept or listener], handler_nursery=conversations
            )
            await accepting.start(accept)
            task_status.started()
            await shutdown.wait()
            accepting.cancel_scope.cancel()  # accept no connection any more
        conversations.cancel_scope.deadline = (
            trio.current_time() + drain
        )  # running calls may finish


@asynccontextmanager
async def _reported(stream: trio.SocketStream) -> AsyncIterator[None]:
    """Own ``stream``, and log an error of its connection: it must not end the others."""
    try:
        async with stream:
            yield
    except PeerRefusedError as exc:
        log.warning("connection refused", error=exc)
    except Exception as exc:
        log.crash("connection failed", exc)
