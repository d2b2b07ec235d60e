"""Calls and channels, without I/O, in the shape that grpclib's stubs expect.

A channel has any number of concurrent calls on one connection.  This module is the part
that all channels share; :mod:`.client` (trio), :mod:`.aio` (asyncio) and :mod:`.blocking`
(threads) add waiting and I/O.

Source: grpclib.client, for the names; containerd/ttrpc client.go, for the rules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, ProtocolError

from shim.errors import UnavailableError
from shim.ttrpc.protocol import ClientProtocol, ResponseReceived

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)
Metadata: TypeAlias = Mapping[str, str] | Collection[tuple[str, str]]

_FOREIGN = "the peer is not a ttrpc server: it replied to an unknown stream; check the address"


class ConnectionLostError(UnavailableError):
    """The connection was closed, by the peer or by us, before the reply arrived."""

    def __init__(self, message: str = "the ttrpc connection is closed; connect again") -> None:
        super().__init__(message)


class Event(Protocol):
    """The event a call waits for, such as trio's and asyncio's Event."""

    def set(self) -> Any: ...
    async def wait(self) -> Any: ...


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
        self.answered = channel.event()
        self._channel = channel
        self._reply_type = reply_type
        self._answer: ResponseReceived | None = None
        self._received = False

    async def send_message(self, message: Request, *, end: bool = False) -> None:
        """Send the request.  ``end`` has no effect: a unary call sends one message.

        :raises ConnectionLostError: the connection has ended.
        :raises TooBigError: the request is over ttrpc's limit.
        """
        if self.stream_id is not None:
            raise ProtocolError("a unary call sends one message")
        await self._channel.send(self, message.SerializeToString())

    async def recv_message(self) -> Reply | None:
        """Wait for the reply; None after it has been received once.

        :raises GRPCError: the peer answered with an error.
        :raises ConnectionLostError: the connection ended first.
        """
        if self._received:
            return None
        if self.stream_id is None:
            raise ProtocolError("send_message() comes first")
        await self.answered.wait()
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

    def finish(self, answer: ResponseReceived | None) -> None:
        """Wake the caller with ``answer``; None means that the connection has ended."""
        self._answer = answer
        self.answered.set()

    def encode(self, protocol: ClientProtocol, payload: bytes) -> bytes:
        """Allocate a stream id and return the frame; frames must be sent in id order."""
        service, _, method = self.name.removeprefix("/").rpartition("/")
        self.stream_id, frame = protocol.encode_request(
            service, method, payload, timeout=self.timeout, metadata=self.metadata
        )
        return frame


class Channel(ABC):
    """One connection and the calls on it; stubs take a channel."""

    def __init__(self, metadata: Metadata | None = None) -> None:
        self._metadata = dict(metadata or {})
        self._protocol = ClientProtocol()
        self._calls: dict[int, Call[Any, Any]] = {}

    @abstractmethod
    def event(self) -> Event:
        """Return a new event for one call."""

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

        The request carries the timeout too.  ``metadata`` is added to the channel's.

        :raises GRPCError: DEADLINE_EXCEEDED, from the block, at the timeout.
        """
        if cardinality is not Cardinality.UNARY_UNARY:
            raise GRPCError(Status.UNIMPLEMENTED, f"{name}: only unary calls are supported")
        pairs = self._metadata | dict(metadata) if metadata else self._metadata
        return self._open(Call(self, name, reply_type, timeout, pairs))

    @abstractmethod
    def _open(
        self, call: Call[Request, Reply]
    ) -> AbstractAsyncContextManager[Call[Request, Reply]]:
        """Limit the block to the call's timeout, and remove the call at its end."""

    @abstractmethod
    async def send(self, call: Call[Any, Any], payload: bytes) -> None:
        """Send a call's request; only :class:`Call` calls this."""

    def _receive(self, data: bytes | bytearray) -> bool:
        """Deliver each of the answers in ``data`` to its caller.

        Return False if the peer does not speak ttrpc: then every call has failed.
        """
        for response in self._protocol.receive_data(data):
            call = self._calls.pop(response.stream_id, None)
            if call is not None:
                call.finish(response)
        if self._protocol.foreign:
            for stream_id, call in self._calls.items():
                call.finish(ResponseReceived(stream_id, Status.INTERNAL, _FOREIGN))
            self._calls.clear()
        return not self._protocol.foreign

    def _forget(self, call: Call[Any, Any]) -> None:
        if call.stream_id is not None:
            self._calls.pop(call.stream_id, None)

    def _lose_calls(self) -> None:
        for call in self._calls.values():
            call.finish(None)
        self._calls.clear()


def too_late(call: Call[Any, Any]) -> GRPCError:
    """Return the error of a call whose timeout has passed."""
    seconds, method = max(call.timeout or 0, 0), call.name.rpartition("/")[2]
    return GRPCError(Status.DEADLINE_EXCEEDED, f"no reply to {method} within {seconds:g} s")


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

        :raises GRPCError: the peer answered with an error, or the timeout has passed.
        :raises ConnectionLostError: the connection ended first.
        """
        async with self.open(timeout=timeout, metadata=metadata) as call:
            await call.send_message(message, end=True)
            reply = await call.recv_message()
        assert reply is not None  # the first recv_message() returns or raises
        return reply


class _StreamingMethod(_Method[Request, Reply]):
    """A method type of generated stubs that ttrpc channels do not support."""

    async def __call__(
        self,
        message: Request | Sequence[Request],
        *,
        timeout: float | None = None,
        metadata: Metadata | None = None,
    ) -> Any:
        """Raise an error.

        :raises GRPCError: UNIMPLEMENTED, always.
        """
        async with self.open(timeout=timeout, metadata=metadata):
            raise AssertionError("the channel rejects every call that is not unary")


class UnaryStreamMethod(_StreamingMethod[Request, Reply]):
    _cardinality = Cardinality.UNARY_STREAM


class StreamUnaryMethod(_StreamingMethod[Request, Reply]):
    _cardinality = Cardinality.STREAM_UNARY


class StreamStreamMethod(_StreamingMethod[Request, Reply]):
    _cardinality = Cardinality.STREAM_STREAM
