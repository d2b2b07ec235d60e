"""Connections over which events are sent: one event at a time, until it is acknowledged.

If the daemon has a keeper, the connection stays open after the daemon's death.  The replacement
knows how much of the event has been sent, and reads the acknowledgement, so the manager
receives the event once.

Source: containerd/ttrpc server.go, which ends no call when nothing more arrives.
"""

from __future__ import annotations

import base64
import json
import os
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio
from google.protobuf.message import DecodeError
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim import log
from shim.api.envelope_pb2 import Envelope
from shim.api.forward_grpc import EventsStub
from shim.api.forward_pb2 import ForwardRequest
from shim.errors import InvalidError, TimedOutError
from shim.linux.sockets import connect
from shim.recovery import versions
from shim.recovery.connections import ConnectionRecord
from shim.recovery.inherited import EVENTS, FORWARD
from shim.recovery.slot import StateSlot
from shim.ttrpc.client import ConnectionLostError, open_channel
from shim.ttrpc.frames import extent, is_too_long
from shim.ttrpc.protocol import ClientProtocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shim.recovery.deposit import Deposit
    from shim.recovery.inherited import Inherited

# Seconds for the manager to acknowledge one event.
ACKNOWLEDGE = 10.0
_SERVICE, _METHOD = "containerd.services.events.ttrpc.v1.Events", "Forward"


class Forwarding(Protocol):
    """A connection to the manager."""

    @property
    def begun(self) -> bytes:
        """The serialized event that a killed daemon was sending, or empty."""

    async def forward(self, envelope: Envelope) -> None:
        """Send an event, and wait for its acknowledgement.

        :raises GRPCError: the manager refused it.
        :raises ShimError, OSError: the connection ended, or there is no reply in time.
        """

    def acknowledged(self) -> None:
        """Forget the event: its acknowledgement is recorded."""


class _PlainForwarding:
    """A connection that ends with this process."""

    begun = b""

    def __init__(self, stub: EventsStub) -> None:
        self._stub = stub

    async def forward(self, envelope: Envelope) -> None:
        await self._stub.Forward(ForwardRequest(envelope=envelope), timeout=ACKNOWLEDGE)

    def acknowledged(self) -> None:
        pass


class Sending(NamedTuple):
    """The record of a connection: the serialized ``event`` that is being sent, or empty.

    ``stream`` is the id of its stream, ``base`` the number of bytes sent before it.
    """

    event: bytes = b""
    stream: int = -1
    base: int = 0

    def encode(self) -> bytes:
        """Return the text for :meth:`decode`."""
        event = base64.b64encode(self.event).decode()
        numbers = f'"stream": {self.stream}, "base": {self.base}'
        return f'{{"version": {versions.EVENTS}, "event": "{event}", {numbers}}}'.encode()

    @classmethod
    def decode(cls, text: bytes) -> Sending:
        """Return the record in a text of :meth:`encode`; no event is sent with an empty text.

        :raises InvalidError: it is malformed, or of another version.
        """
        if not text:
            return cls()
        try:
            value = json.loads(text)
            versions.require_readable("events", value["version"])
            event = base64.b64decode(value["event"])
            Envelope.FromString(event)
            return cls(event, int(value["stream"]), int(value["base"]))
        except (ValueError, LookupError, TypeError, RecursionError, DecodeError) as exc:
            raise InvalidError(f"the record of the sent event is malformed: {exc}") from None


class _KeptForwarding:
    """A connection that goes on in a replacement, with what ``record`` has of it."""

    def __init__(self, stream: trio.SocketStream, record: ConnectionRecord) -> None:
        self._fd = stream.socket.fileno()
        self._record = record
        state = record.load()
        self.begun, self._stream_id, self._base = Sending.decode(state)
        self._is_resumed = bool(state)
        self._rest = 0  # received bytes of later frames

    async def forward(self, envelope: Envelope) -> None:
        event = envelope.SerializeToString()
        if event != self.begun:
            if self._is_resumed and self._record.sent < self._base + len(self._frame()):
                # The rest was only in the memory of the killed daemon.
                raise ConnectionLostError
            self.begun, self._base = event, self._record.sent
            self._stream_id += 2
            self._save()
        self._is_resumed = False
        frame = self._frame(envelope)
        try:
            with trio.fail_after(ACKNOWLEDGE):
                await self._send(frame)
                await self._receive()
        except trio.TooSlowError:
            raise TimedOutError("the manager acknowledged no event in time") from None

    def acknowledged(self) -> None:
        self._record.advance(self._rest, 0)

    def _frame(self, envelope: Envelope | None = None) -> bytes:
        """Return the request that sends the event, which is ``envelope`` if that is known."""
        protocol = ClientProtocol(self._stream_id)
        envelope = envelope or Envelope.FromString(self.begun)
        payload = ForwardRequest(envelope=envelope).SerializeToString()
        return protocol.encode_request(_SERVICE, _METHOD, payload, timeout=ACKNOWLEDGE)[1]

    def _save(self) -> None:
        self._record.save(Sending(self.begun, self._stream_id, self._base).encode())

    async def _send(self, frame: bytes) -> None:
        while (offset := self._record.sent - self._base) < len(frame):
            try:
                self._record.send(frame, offset)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._fd)

    async def _receive(self) -> None:
        """Wait for the reply; its bytes stay received until :meth:`acknowledged`."""
        while True:
            data, _ = self._record.unhandled
            end = extent(data)
            self._rest = len(data) - end
            for answer in ClientProtocol().receive_data(data[:end]):
                if answer.stream_id == self._stream_id:
                    if answer.status is not Status.OK:
                        raise GRPCError(answer.status, answer.message)
                    return
            if end:  # replies to other calls
                self._record.advance(self._rest, 0)
            elif is_too_long(data):
                raise ConnectionLostError("the manager sent no ttrpc frame; check the address")
            # The reply to a request that was just sent takes a moment.
            await trio.lowlevel.wait_readable(self._fd)
            with suppress(BlockingIOError):
                if not self._record.receive():
                    raise ConnectionLostError


def _kept(stream: trio.SocketStream, record: ConnectionRecord) -> _KeptForwarding:
    try:
        return _KeptForwarding(stream, record)
    except InvalidError as exc:
        log.error("an event may be delivered twice: cannot go on with a connection", error=exc)
        raise


class Forwardings:
    """Opens connections to the manager that listens on ``address``.

    With an active ``deposit`` they are kept; ``inherited`` may have that of a killed daemon.
    """

    def __init__(
        self, address: str, deposit: Deposit | None = None, inherited: Inherited | None = None
    ) -> None:
        self._address = address
        self._deposit = deposit
        self._inherited: tuple[trio.SocketStream, ConnectionRecord] | None = None
        if deposit is not None and inherited is not None:
            self._inherited = _inherited(deposit, inherited)

    @property
    def has_inherited(self) -> bool:
        """Whether the next connection is that of a killed daemon."""
        return self._inherited is not None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Forwarding]:
        """Connect, unless a connection was inherited, and close it at the end of the block.

        :raises ShimError, OSError: the manager cannot be reached.
        """
        inherited, self._inherited = self._inherited, None
        if inherited is None and (self._deposit is None or not self._deposit.is_active):
            async with (
                await connect(self._address) as stream,
                open_channel(stream) as channel,
            ):
                yield _PlainForwarding(EventsStub(channel))
            return
        if inherited is None:
            assert self._deposit is not None
            inherited = await self._connect(self._deposit)
        stream, record = inherited
        async with stream:
            try:
                yield _kept(stream, record)
            except trio.Cancelled:
                record.leave()
                raise
            finally:
                record.close()

    async def _connect(self, deposit: Deposit) -> tuple[trio.SocketStream, ConnectionRecord]:
        stream = await connect(self._address)
        try:
            slot = StateSlot.new()
        except OSError:
            await trio.aclose_forcefully(stream)
            raise
        fd = stream.socket.fileno()
        deposit.lend({EVENTS: fd, FORWARD: slot.fd})
        return stream, ConnectionRecord(fd, slot, deposit, (EVENTS, FORWARD))


def _inherited(
    deposit: Deposit, inherited: Inherited
) -> tuple[trio.SocketStream, ConnectionRecord] | None:
    fd, slot = inherited.take(EVENTS), inherited.take_slot(FORWARD)
    if fd < 0 or slot is None:
        if fd >= 0:
            os.close(fd)
        if slot is not None:
            slot.close()
        deposit.drop(EVENTS, FORWARD)
        return None
    deposit.use_own({EVENTS: fd, FORWARD: slot.fd})
    record = ConnectionRecord(fd, slot, deposit, (EVENTS, FORWARD))
    return trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=fd))), record
