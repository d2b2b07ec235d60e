"""ttrpc on asyncio: a channel for stubs, and a server of services.

An adapter of :mod:`.calls`, :mod:`.services` and :mod:`.protocol` for asyncio.
grpclib's unmodified stubs work on the channel.  The daemon never imports this module.

Source: asyncio's transports: a write takes the whole frame, and pause_writing() limits
the buffer.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError

from shim import log
from shim.errors import status_of
from shim.linux import sockets
from shim.linux.peers import check_server
from shim.ttrpc import calls
from shim.ttrpc.calls import Call, ConnectionLostError, Metadata, Reply, Request, too_late
from shim.ttrpc.protocol import RequestReceived, ServerProtocol
from shim.ttrpc.services import PeerRefusedError, Stream, accept, check_peer, expected

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Mapping

    from grpclib.const import Handler


async def connect(address: str, timeout: float = 5) -> socket.socket:
    """Connect to ``address`` within ``timeout`` seconds.

    :raises UnavailableError: no process listens there.
    :raises TimedOutError: a process listens, but did not accept the connection.
    :raises InvalidError: another user than root or our own serves it.
    """
    now = asyncio.get_running_loop().time
    with sockets.connecting(address, timeout, now) as (sock, pauses):
        for pause in pauses:
            await asyncio.sleep(pause)
        check_server(sock, address)
    return sock


class Channel(calls.Channel, asyncio.Protocol):
    """One connection and the calls on it.  Made by :func:`open_channel`."""

    def __init__(self, metadata: Metadata | None = None) -> None:
        super().__init__(metadata)
        self._transport: asyncio.WriteTransport | None = None
        self._lost = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def event(self) -> asyncio.Event:
        """Return a new event for one call."""
        return asyncio.Event()

    async def wait_lost(self) -> None:
        """Wait until the connection and every call on it have ended."""
        await self._lost.wait()

    @asynccontextmanager
    async def _open(self, call: Call[Request, Reply]) -> AsyncIterator[Call[Request, Reply]]:
        if call.timeout is not None and call.timeout <= 0:
            raise too_late(call)
        scope = asyncio.timeout(call.timeout)
        try:
            async with scope:
                yield call
        except TimeoutError:
            if scope.expired():
                raise too_late(call) from None
            raise
        finally:
            self._forget(call)

    async def send(self, call: Call[Any, Any], payload: bytes) -> None:
        # A transport takes a whole frame at once, so a cancelled call cannot leave half a
        # frame on the wire.
        await self._room.wait()
        if self._transport is None or self._transport.is_closing():
            raise ConnectionLostError
        frame = call.encode(self._protocol, payload)
        assert call.stream_id is not None
        self._calls[call.stream_id] = call
        self._transport.write(frame)

    # Callbacks of asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        if not self._receive(data):
            cast("asyncio.WriteTransport", self._transport).abort()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost.set()
        self._room.set()
        self._lose_calls()


@asynccontextmanager
async def open_channel(
    sock: socket.socket, metadata: Metadata | None = None
) -> AsyncIterator[Channel]:
    """Own ``sock`` for the block; close it and end every call at the end of the block.

    ``metadata`` goes with every call.
    """
    loop = asyncio.get_running_loop()
    try:
        transport, channel = await loop.create_unix_connection(
            partial(Channel, metadata), sock=sock
        )
    except BaseException:
        sock.close()
        raise
    try:
        yield channel
    finally:
        transport.abort()  # no call waits any more, so unsent data is dropped
        await channel.wait_lost()


@asynccontextmanager
async def open_server(
    listener: socket.socket, handlers: Mapping[str, Handler]
) -> AsyncIterator[None]:
    """Own ``listener``, and serve our own user's processes on it for the block.

    A method continues when its caller disconnects, until its caller's deadline at most.
    The end of the block cancels the methods that still run.
    """
    serving = _Server(handlers)
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_unix_server(serving.meet, sock=listener)
    except BaseException:
        listener.close()
        raise
    try:
        yield
    finally:
        # asyncio calls connection_made() of an accepted connection in a later turn.  A
        # server that is closed before that would drop the connection without closing it.
        loop.remove_reader(listener.fileno())
        try:
            await asyncio.sleep(0)
        finally:
            server.close()
            await serving.close()


class _Server:
    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self.handlers = handlers
        self.peers: set[_Peer] = set()
        self.closing = False
        self.running: set[asyncio.Task[None]] = set()

    def meet(self) -> _Peer:
        peer = _Peer(self)
        self.peers.add(peer)
        return peer

    async def close(self) -> None:
        self.closing = True
        peers = list(self.peers)
        for peer in peers:
            if peer.made:
                peer.transport.abort()
        for task in self.running:
            task.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)
        for peer in peers:
            await peer.gone.wait()


class _Peer(asyncio.Protocol):
    """One connection of a client."""

    transport: asyncio.Transport

    def __init__(self, server: _Server) -> None:
        self._server = server
        self.made = False  # connection_made() was called
        self._protocol = ServerProtocol()
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.made = True
        if self._server.closing:
            self.transport.abort()
            return
        try:
            check_peer(transport.get_extra_info("socket"))
        except PeerRefusedError as exc:
            log.warning("connection refused", error=exc)
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.peers.discard(self)
        self.gone.set()

    def pause_writing(self) -> None:
        # The client does not read its replies: stop reading its requests.
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        for event in self._protocol.receive_data(data):
            self._dispatch(event)
        self._flush()

    def _dispatch(self, event: RequestReceived) -> None:
        now = asyncio.get_running_loop().time()
        try:
            handler, stream = accept(event, self._server.handlers, now)
        except GRPCError as exc:
            self._protocol.send_error(event.stream_id, exc.status, exc.message or "")
            return
        name = f"/{event.service}/{event.method}"
        task = asyncio.create_task(self._call(event.stream_id, name, handler, stream))
        self._server.running.add(task)
        task.add_done_callback(self._server.running.discard)

    async def _call(
        self, stream_id: int, name: str, handler: Handler, stream: Stream[Any, Any]
    ) -> None:
        scope = asyncio.timeout_at(None if stream.deadline == math.inf else stream.deadline)
        try:
            async with scope:
                await handler.func(stream)
            if stream.reply is None:
                raise ProtocolError(f"{name} returned without a reply")  # noqa: TRY301 - the caller's answer, like the others
            self._protocol.send_reply(stream_id, stream.reply)
        except Exception as exc:  # every error is sent to the caller
            if isinstance(exc, TimeoutError) and scope.expired():
                exc = GRPCError(
                    Status.DEADLINE_EXCEEDED, f"{name} did not finish before its deadline"
                )
            if not expected(exc):
                log.crash("method failed", exc, method=name)
            self._protocol.send_error(stream_id, *status_of(exc))
        self._flush()

    def _flush(self) -> None:
        data = self._protocol.data_to_send()
        if data and not self.transport.is_closing():
            self.transport.write(data)
