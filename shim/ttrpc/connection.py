"""One connection of a ttrpc server: a reading task, a writing task, and one task for each call.

:mod:`shim.ttrpc.server` has the rules for cancelling calls, and the limits.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError

from shim import log
from shim.errors import MustWaitError, status_of
from shim.ttrpc.protocol import RequestReceived, ServerProtocol
from shim.ttrpc.services import UNSENT_LIMIT, Stream, accept, admit, expected, plain_methods

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Coroutine, Iterator, Mapping

    from google.protobuf.message import Message
    from grpclib.const import Handler

    from shim.ttrpc.services import PlainMethod

# Running calls on one connection; each takes about 7 KB.  A manager has a Wait for each
# process of a container, and one connection for each container.
MAX_CALLS = 4096
# Bytes of one read.  A client that sends requests without a pause has some 100 answered in
# its turn, which takes a millisecond; then the other connections have theirs.
CHUNK = 8192


class Methods(NamedTuple):
    """The methods by full name; ``cancellable`` and ``undoable`` have short names."""

    handlers: Mapping[str, Handler]
    cancellable: Container[str]
    undoable: Container[str]
    immediate: Mapping[str, PlainMethod]
    repeated: Mapping[str, PlainMethod] = MappingProxyType({})
    """Those in ``immediate``, for a request that a killed server may have handled."""

    @classmethod
    def of(
        cls,
        handlers: Mapping[str, Handler],
        cancellable: Container[str],
        undoable: Container[str],
        immediate: Container[str],
    ) -> Methods:
        """Return the methods of ``handlers``; the other arguments are short names."""
        return cls(
            handlers,
            cancellable,
            undoable,
            plain_methods(handlers, immediate),
            plain_methods(handlers, immediate, replayed=True),
        )


class Call(NamedTuple):
    """A running call.  ``scope`` is cancelled at its deadline."""

    stream_id: int
    name: str
    handler: Handler
    stream: Stream[Any, Any]
    scope: trio.CancelScope


class Connection:
    """A connection that ends with its server; :mod:`shim.ttrpc.kept` has the other kind."""

    def __init__(self, stream: trio.SocketStream, methods: Methods) -> None:
        self._stream = stream
        self._fd = stream.socket.fileno()
        self._receive: Callable[[], bytes] = partial(os.read, self._fd, CHUNK)
        self._methods = methods
        self._immediate = methods.immediate
        self._replaying = False  # the requests come from a killed server's record
        self._protocol = ServerProtocol()
        self._calls = 0  # running calls of all methods that are not immediate
        self._running = 0  # those of them for which a shutdown waits
        self._revocable: dict[int, Call] = {}
        self._draining = False
        self._gone = False
        self._idle_writer = trio.lowlevel.ParkingLot()
        self._held_reader = trio.lowlevel.ParkingLot()

    async def run(self, shutdown: trio.Event | None) -> None:
        async with trio.open_nursery() as lasting:
            async with self._stream:
                with self._open(shutdown):
                    async with trio.open_nursery() as writing:
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
            for call in self._revocable.values():
                call.stream.lost = True
                call.scope.cancel()

    async def _read_loop(self, lasting: trio.Nursery, listening: trio.Nursery) -> None:
        while not self._gone:
            await trio.lowlevel.wait_readable(self._fd)
            self._read(lasting, listening)
            while self._protocol.unsent > UNSENT_LIMIT:
                await self._held_reader.park()

    def _read(self, lasting: trio.Nursery, listening: trio.Nursery) -> None:
        """Read once, and take the requests."""
        try:
            data = self._receive()
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            self._take(data, lasting, listening)
        except Exception as exc:  # the calls that run on this connection must finish
            log.crash("connection failed", exc)
            data = b""
        self._gone = self._gone or not data

    def _take(
        self, data: bytes | bytearray, lasting: trio.Nursery, listening: trio.Nursery
    ) -> None:
        for event in self._protocol.receive_data(data):
            self._dispatch(event, lasting, listening)
        self._flush()

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
        """Send queued bytes without waiting; the writer task sends the rest."""
        if not self._protocol.unsent:
            return
        if self._idle_writer:
            rest = self._write_now(self._protocol.data_to_send())
            if not rest:
                return
            self._protocol.put_back(rest)
        self._idle_writer.unpark()

    def _write_now(self, data: bytes) -> bytes:
        """Send ``data`` without waiting; return the part that the socket did not accept."""
        try:
            return data[os.write(self._fd, data) :]
        except OSError:  # the writer task gets it again, and handles it
            return data

    def _dispatch(
        self, event: RequestReceived, lasting: trio.Nursery, listening: trio.Nursery
    ) -> None:
        name = f"/{event.service}/{event.method}"
        ready = None
        try:
            if (method := self._immediate.get(name)) is not None:
                _, request = admit(event, self._methods.handlers)
                ready = self._call_now(event.stream_id, name, method(request))
                if ready is None:
                    return
            handler, stream = accept(
                event, self._methods.handlers, trio.current_time(), replayed=self._replaying
            )
            self._check_room(name)
            if ready is not None:
                handler = handler._replace(func=partial(_call_when, ready, handler.func))
        except GRPCError as exc:
            self._protocol.send_error(event.stream_id, exc.status, exc.message or "")
            return
        except Exception as exc:  # an error in one call must not end the others
            self._fail(event.stream_id, name, exc)
            return
        self._calls += 1
        scope = trio.CancelScope(deadline=stream.deadline)
        call = Call(event.stream_id, name, handler, stream, scope)
        self._started(event, stream)
        if event.method in self._methods.cancellable:
            listening.start_soon(self._call, call)
            return
        self._running += 1
        if event.method in self._methods.undoable:
            self._revocable[call.stream_id] = call
        lasting.start_soon(self._lasting_call, call)

    def _check_room(self, name: str) -> None:
        if self._calls >= MAX_CALLS:
            raise GRPCError(
                Status.RESOURCE_EXHAUSTED,
                f"{name} rejected: {MAX_CALLS} calls are running on this connection; "
                "wait for one of them, or open another connection",
            )

    def _call_now(
        self, stream_id: int, name: str, call: Coroutine[object, None, Message]
    ) -> Callable[[], Awaitable[None]] | None:
        """Run a method that does not suspend; return what it has to wait for before, if anything.

        If it has to wait, no reply is queued.
        """
        try:
            call.send(None)
        except StopIteration as done:
            self._protocol.send_reply(stream_id, done.value.SerializeToString())
        except MustWaitError as exc:
            return exc.ready
        except Exception as exc:  # every error is sent to the caller
            self._fail(stream_id, name, exc)
        else:
            call.close()
            self._fail(stream_id, name, ProtocolError(f"{name} is immediate, but suspends"))
        return None

    async def _lasting_call(self, call: Call) -> None:
        try:
            await self._call(call)
        finally:
            self._revocable.pop(call.stream_id, None)
            self._running -= 1
            if self._draining:
                self._idle_writer.unpark()

    async def _call(self, call: Call) -> None:
        try:
            with call.scope:
                await call.handler.func(call.stream)
        except Exception as exc:  # every error is sent to the caller
            self._fail(call.stream_id, call.name, exc)
        else:
            if call.scope.cancelled_caught:
                error = GRPCError(
                    Status.DEADLINE_EXCEEDED, f"{call.name} did not finish before its deadline"
                )
                self._fail(call.stream_id, call.name, error)
            else:
                self._answer(call)
        finally:
            self._calls -= 1
        self._ended(call.stream_id)
        self._flush()

    def _started(self, event: RequestReceived, stream: Stream[Any, Any]) -> None:
        """Called before a method runs that is not immediate."""

    def _ended(self, stream_id: int) -> None:
        """Called once the reply of such a method is queued."""

    @contextmanager
    def _open(self, _shutdown: trio.Event | None) -> Iterator[None]:
        """Use the socket in the block; it is closed afterwards, when calls may still run."""
        try:
            yield
        finally:
            self._gone = True

    def _answer(self, call: Call) -> None:
        if call.stream.reply is None:
            error = ProtocolError(f"{call.name} returned without a reply")
            self._fail(call.stream_id, call.name, error)
        elif not self._gone:
            self._protocol.send_reply(call.stream_id, call.stream.reply)

    def _fail(self, stream_id: int, name: str, exc: Exception) -> None:
        if not expected(exc):
            log.crash("method failed", exc, method=name)
        status, message = status_of(exc)
        if not self._gone:
            self._protocol.send_error(stream_id, status, message)


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _call_when(
    ready: Callable[[], Awaitable[None]],
    method: Callable[[Stream[Any, Any]], Awaitable[None]],
    stream: Stream[Any, Any],
) -> None:
    await ready()
    await method(stream)
