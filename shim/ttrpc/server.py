"""Services over ttrpc connections: one task a call, one writer a connection.

What a frame means is :mod:`shim.ttrpc.protocol`'s business; what a method does
is the service's.  Here is who runs when, and who stops when:

- A call ends with its own deadline, or with the server.  The methods named in
  ``abandon`` (those that only wait) also end with the caller's connection; the
  others run to their end, so that a manager which dies in the middle of a
  Create leaves nothing half done.
- The methods named in ``immediate`` wait for nothing: they run where the request is
  read, without a task of their own.  A reply goes out in the turn it is made when
  nothing else is on its way; the writer is there for what the socket does not take.
- A peer that does not read its replies is not read from either, once
  ``UNSENT_LIMIT`` is reached.  It is not cut off: containerd takes a closed
  connection for a dead shim and deletes the container, and a manager that is
  merely stopped must not come back to that.

Source: containerd/ttrpc server.go, from which the first rule differs on purpose.
"""

from __future__ import annotations

import contextlib
import functools
import os
from typing import TYPE_CHECKING, Any

import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError

from shim import log
from shim.errors import status_of
from shim.ttrpc.protocol import RequestReceived, ServerProtocol
from shim.ttrpc.services import (
    UNSENT_LIMIT,
    PeerRefusedError,
    Servable,
    Stream,
    accept,
    check_peer,
    expected,
    handlers_of,
    unary,
)

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from grpclib.const import Handler

__all__ = [
    "UNSENT_LIMIT",
    "PeerRefusedError",
    "Servable",
    "Stream",
    "check_peer",
    "handlers_of",
    "serve",
    "serve_connection",
    "unary",
]

_CHUNK = 65536  # bytes; one read takes whole bursts of requests


async def serve_connection(
    stream: trio.abc.Stream,
    *,
    handlers: Mapping[str, Handler],
    abandon: Container[str] = (),
    immediate: Container[str] = (),
    shutdown: trio.Event | None = None,
) -> None:
    """Own ``stream``, and answer the requests on it until the peer goes.

    ``abandon`` and ``immediate`` are short names of methods.  One that is called
    immediate and waits after all is an error to its caller.

    Returns when every call has ended.  After ``shutdown`` no new request is
    taken, the methods in ``abandon`` end at once, and the rest still get their
    replies sent.
    """
    await _Connection(stream, handlers, abandon, immediate).run(shutdown)


async def serve(
    listener: trio.SocketListener,
    handlers: Mapping[str, Handler],
    *,
    shutdown: trio.Event,
    drain: float,
    abandon: Container[str] = (),
    immediate: Container[str] = (),
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Own ``listener``, and serve our own user's processes on it until ``shutdown``.

    What is running then has ``drain`` seconds to end, and is cancelled after.
    """

    async def converse(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                check_peer(stream.socket)
                await serve_connection(
                    stream,
                    handlers=handlers,
                    abandon=abandon,
                    immediate=immediate,
                    shutdown=shutdown,
                )
        except PeerRefusedError as exc:
            log.warning("connection refused", error=exc)
        except Exception as exc:  # one connection must not cost the others theirs
            log.crash("connection failed", exc)

    async with trio.open_nursery() as conversations:
        async with trio.open_nursery() as accepting:
            accept = functools.partial(
                trio.serve_listeners, converse, [listener], handler_nursery=conversations
            )
            await accepting.start(accept)
            task_status.started()
            await shutdown.wait()
            accepting.cancel_scope.cancel()  # no new callers
        conversations.cancel_scope.deadline = trio.current_time() + drain  # the rest may finish


class _Connection:
    def __init__(
        self,
        stream: trio.abc.Stream,
        handlers: Mapping[str, Handler],
        abandon: Container[str],
        immediate: Container[str],
    ) -> None:
        self._stream = stream
        self._handlers = handlers
        self._abandon = abandon
        self._immediate = immediate
        self._protocol = ServerProtocol()
        self._running = 0  # calls that outlive the peer
        self._draining = False
        self._gone = False
        self._idle_writer = trio.lowlevel.ParkingLot()
        self._held_reader = trio.lowlevel.ParkingLot()

    async def run(self, shutdown: trio.Event | None) -> None:
        async with trio.open_nursery() as lasting:
            async with self._stream, trio.open_nursery() as writing:
                writing.start_soon(self._write_loop, writing.cancel_scope)
                async with trio.open_nursery() as listening:
                    if shutdown is not None:
                        listening.start_soon(_cancel_at, shutdown, listening.cancel_scope)
                    await self._read_loop(lasting, listening)
                    self._gone = True
                    listening.cancel_scope.cancel()
                if self._gone:
                    writing.cancel_scope.cancel()
                self._draining = True
                self._idle_writer.unpark()
            self._gone = True

    async def _read_loop(self, lasting: trio.Nursery, listening: trio.Nursery) -> None:
        try:
            while data := await self._stream.receive_some(_CHUNK):
                for event in self._protocol.receive_data(data):
                    self._dispatch(event, lasting, listening)
                self._flush()
                while self._protocol.unsent > UNSENT_LIMIT:
                    await self._held_reader.park()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # gone without a good-bye is gone all the same

    async def _write_loop(self, scope: trio.CancelScope) -> None:
        try:
            while True:
                if data := self._protocol.data_to_send():
                    self._held_reader.unpark()
                    await self._stream.send_all(data)
                elif self._draining and not self._running:
                    return
                else:
                    await self._idle_writer.park()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._gone = True
            scope.cancel()

    def _flush(self) -> None:
        """Send what is queued as far as that needs no waiting; the writer does the rest."""
        if self._idle_writer and isinstance(self._stream, trio.SocketStream):
            data = self._protocol.data_to_send()
            sent = 0
            with contextlib.suppress(OSError):  # the writer meets it again, and deals with it
                sent = os.write(self._stream.socket.fileno(), data) if data else 0
            self._protocol.put_back(data[sent:])
        if self._protocol.unsent:
            self._idle_writer.unpark()

    def _dispatch(
        self, event: RequestReceived, lasting: trio.Nursery, listening: trio.Nursery
    ) -> None:
        name = f"/{event.service}/{event.method}"
        try:
            handler, stream = accept(event, self._handlers, trio.current_time())
        except GRPCError as exc:
            self._protocol.send_error(event.stream_id, exc.status, exc.message or "")
            return
        if event.method in self._immediate:
            self._call_now(event.stream_id, name, handler, stream)
        elif event.method in self._abandon:
            listening.start_soon(self._call, event.stream_id, name, handler, stream)
        else:
            self._running += 1
            lasting.start_soon(self._lasting_call, event.stream_id, name, handler, stream)

    def _call_now(
        self, stream_id: int, name: str, handler: Handler, stream: Stream[Any, Any]
    ) -> None:
        call = handler.func(stream)
        try:
            call.send(None)
        except StopIteration:
            self._answer(stream_id, name, stream)
        except Exception as exc:  # whatever it is, it is the caller's answer
            self._fail(stream_id, name, exc)
        else:
            call.close()
            self._fail(stream_id, name, ProtocolError(f"{name} is immediate, and waits"))

    async def _lasting_call(
        self, stream_id: int, name: str, handler: Handler, stream: Stream[Any, Any]
    ) -> None:
        try:
            await self._call(stream_id, name, handler, stream)
        finally:
            self._running -= 1
            if self._draining:
                self._idle_writer.unpark()

    async def _call(
        self, stream_id: int, name: str, handler: Handler, stream: Stream[Any, Any]
    ) -> None:
        try:
            with trio.CancelScope(deadline=stream.deadline) as scope:
                await handler.func(stream)
        except Exception as exc:  # whatever it is, it is the caller's answer
            self._fail(stream_id, name, exc)
        else:
            if scope.cancelled_caught:
                error = GRPCError(Status.DEADLINE_EXCEEDED, f"{name} was not done in time")
                self._fail(stream_id, name, error)
            else:
                self._answer(stream_id, name, stream)
        self._flush()

    def _answer(self, stream_id: int, name: str, stream: Stream[Any, Any]) -> None:
        if stream.reply is None:
            self._fail(stream_id, name, ProtocolError(f"{name} returned without a reply"))
        elif not self._gone:
            self._protocol.send_reply(stream_id, stream.reply)

    def _fail(self, stream_id: int, name: str, exc: Exception) -> None:
        if not expected(exc):
            log.crash("method failed", exc, method=name)
        status, message = status_of(exc)
        if not self._gone:
            self._protocol.send_error(stream_id, status, message)


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
