"""Calls over one ttrpc connection, in the shape that grpclib's stubs expect.

A :class:`Channel` carries any number of calls at once; the methods below are
what the generated stubs are made of.  Who connects the socket, and when to try
again, is the caller's business.

Source: grpclib.client, for the names; containerd/ttrpc client.go, for the rules.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar

import trio
from google.protobuf.message import DecodeError, Message
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, ProtocolError

from shim.errors import UnavailableError
from shim.scope import background
from shim.ttrpc.protocol import ClientProtocol, ResponseReceived

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)
Metadata: TypeAlias = Mapping[str, str] | Collection[tuple[str, str]]

_CHUNK = 65536  # bytes; one read takes whole bursts of replies


class ConnectionLostError(UnavailableError):
    """The peer closed the connection, or it was closed here, before a reply came."""

    def __init__(self, message: str = "the ttrpc connection is closed; connect again") -> None:
        super().__init__(message)


class Call(Generic[Request, Reply]):
    """One call: one message out, one message back."""

    def __init__(
        self,
        channel: Channel,
        name: str,
        reply_type: type[Reply],
        timeout: float | None,
        metadata: dict[str, str],
    ) -> None:
        self.name = name
        self.timeout = timeout
        self.metadata = metadata
        self.stream_id: int | None = None
        self._channel = channel
        self._reply_type = reply_type
        self._answered = trio.Event()
        self._answer: ResponseReceived | None = None
        self._received = False

    async def send_message(self, message: Request, *, end: bool = False) -> None:
        """Send the request.  ``end`` changes nothing: a unary request is always the last.

        :raises ConnectionLostError: there is no connection any more.
        :raises TooBigError: the request is over ttrpc's limit.
        """
        if self.stream_id is not None:
            raise ProtocolError("a unary call sends one message")
        await self._channel._send(self, message.SerializeToString())

    async def recv_message(self) -> Reply | None:
        """Wait for the reply; None after it has been received once.

        :raises GRPCError: the peer answered with an error.
        :raises ConnectionLostError: the connection ended first.
        """
        if self._received:
            return None
        if self.stream_id is None:
            raise ProtocolError("send_message() comes first")
        await self._answered.wait()
        self._received = True
        answer = self._answer
        if answer is None:
            raise ConnectionLostError
        if answer.status is not Status.OK:
            raise GRPCError(answer.status, answer.message)
        try:
            return self._reply_type.FromString(answer.payload)
        except DecodeError as exc:
            text = f"the reply to {self.name} is not a {self._reply_type.DESCRIPTOR.full_name}"
            raise GRPCError(Status.INTERNAL, text) from exc

    def settle(self, answer: ResponseReceived | None) -> None:
        """Wake the caller with ``answer``, or with None for a lost connection."""
        self._answer = answer
        self._answered.set()


class Channel:
    """One connection and the calls on it.  Made by :func:`open_channel`."""

    def __init__(self, stream: trio.abc.Stream, metadata: Metadata | None = None) -> None:
        self._stream = stream
        self._metadata = dict(metadata or {})
        self._protocol = ClientProtocol()
        self._calls: dict[int, Call[Any, Any]] = {}
        self._outgoing, self._frames = trio.open_memory_channel[bytes](0)
        self._lost = trio.Event()

    async def wait_lost(self) -> None:
        """Return once the connection has ended, and every call on it."""
        await self._lost.wait()

    def request(
        self,
        name: str,
        cardinality: Cardinality,
        request_type: type[Request],
        reply_type: type[Reply],
        *,
        timeout: float | None = None,
        metadata: Metadata | None = None,
    ) -> AbstractAsyncContextManager[Call[Request, Reply]]:
        """Open a call to ``name`` for a block that may last ``timeout`` seconds.

        The peer is told the timeout too.  ``metadata`` is added to the channel's own.

        :raises GRPCError: DEADLINE_EXCEEDED, out of the block, when the time is up.
        """
        if cardinality is not Cardinality.UNARY_UNARY:
            raise GRPCError(Status.UNIMPLEMENTED, f"{name}: only unary calls are supported")
        pairs = self._metadata | dict(metadata) if metadata else self._metadata
        return self._open(Call(self, name, reply_type, timeout, pairs))

    @asynccontextmanager
    async def _open(self, call: Call[Request, Reply]) -> AsyncIterator[Call[Request, Reply]]:
        seconds = math.inf if call.timeout is None else max(call.timeout, 0)
        try:
            with trio.move_on_after(seconds) as scope:
                yield call
        finally:
            if call.stream_id is not None:
                self._calls.pop(call.stream_id, None)
        if scope.cancelled_caught:
            raise GRPCError(
                Status.DEADLINE_EXCEEDED, f"{call.name}: no reply within {seconds:g} s"
            )

    async def _send(self, call: Call[Any, Any], payload: bytes) -> None:
        # Handing whole frames to one writer task means that a cancelled call
        # can be forgotten, but can never leave half a frame on the wire.
        service, _, method = call.name.removeprefix("/").rpartition("/")
        call.stream_id, frame = self._protocol.encode_request(
            service, method, payload, timeout=call.timeout, metadata=call.metadata
        )
        self._calls[call.stream_id] = call
        try:
            await self._outgoing.send(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise ConnectionLostError from None

    async def _write_loop(self) -> None:
        # A peer that is gone is noticed by the reader as well, which first
        # delivers the replies that are still there to be read.
        try:
            async for frame in self._frames:
                await self._stream.send_all(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._frames.close()

    async def _read_loop(self) -> None:
        try:
            while data := await self._stream.receive_some(_CHUNK):
                for response in self._protocol.receive_data(data):
                    call = self._calls.pop(response.stream_id, None)
                    if call is not None:
                        call.settle(response)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._lose()

    def _lose(self) -> None:
        self._lost.set()
        self._frames.close()
        for call in self._calls.values():
            call.settle(None)
        self._calls.clear()


@asynccontextmanager
async def open_channel(
    stream: trio.abc.Stream, metadata: Metadata | None = None
) -> AsyncIterator[Channel]:
    """Own ``stream`` for the block; close it, and end every call, on the way out.

    ``metadata`` goes with every call: ``{NAMESPACE: "k8s.io"}``, say.
    """
    channel = Channel(stream, metadata)
    async with stream, background(channel._read_loop, channel._write_loop):
        yield channel


class _Method(Generic[Request, Reply]):
    """One method of a stub: ``name`` is ``/package.Service/Method``."""

    _cardinality: ClassVar[Cardinality]

    def __init__(
        self, channel: Channel, name: str, request_type: type[Request], reply_type: type[Reply]
    ) -> None:
        self.channel = channel
        self.name = name
        self.request_type = request_type
        self.reply_type = reply_type

    def open(
        self, *, timeout: float | None = None, metadata: Metadata | None = None
    ) -> AbstractAsyncContextManager[Call[Request, Reply]]:
        """Open the call as a block; see :meth:`Channel.request`."""
        return self.channel.request(
            self.name,
            self._cardinality,
            self.request_type,
            self.reply_type,
            timeout=timeout,
            metadata=metadata,
        )


class UnaryUnaryMethod(_Method[Request, Reply]):
    """One message out, one back."""

    _cardinality = Cardinality.UNARY_UNARY

    async def __call__(
        self,
        message: Request,
        *,
        timeout: float | None = None,
        metadata: Metadata | None = None,
    ) -> Reply:
        """Call, and wait for the reply at most ``timeout`` seconds.

        :raises GRPCError: the peer refused, or the time is up.
        :raises ConnectionLostError: the connection ended first.
        """
        async with self.open(timeout=timeout, metadata=metadata) as call:
            await call.send_message(message, end=True)
            reply = await call.recv_message()
        assert reply is not None  # the first recv_message() returns or raises
        return reply


class _StreamingMethod(_Method[Request, Reply]):
    """A shape that stubs may name, and whose calls the channel refuses."""

    async def __call__(
        self,
        message: Request | Sequence[Request],
        *,
        timeout: float | None = None,
        metadata: Metadata | None = None,
    ) -> Any:
        """Refuse.

        :raises GRPCError: UNIMPLEMENTED, always.
        """
        async with self.open(timeout=timeout, metadata=metadata):
            raise AssertionError("the channel refuses every call that is not unary")


class UnaryStreamMethod(_StreamingMethod[Request, Reply]):
    _cardinality = Cardinality.UNARY_STREAM


class StreamUnaryMethod(_StreamingMethod[Request, Reply]):
    _cardinality = Cardinality.STREAM_UNARY


class StreamStreamMethod(_StreamingMethod[Request, Reply]):
    _cardinality = Cardinality.STREAM_STREAM
