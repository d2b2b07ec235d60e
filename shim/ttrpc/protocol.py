"""The ttrpc protocol of a client and of a server: received bytes to events, replies to bytes.

Only unary calls are supported, because the task API has no others; data frames are
ignored.  This module has no I/O, no clock and no tasks.

Source: containerd/ttrpc, PROTOCOL.md, request.proto, server.go and client.go.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from google.protobuf.message import DecodeError
from grpclib.const import Status

from shim.text import printable
from shim.ttrpc import wire_pb2
from shim.ttrpc.frames import (
    MAX_PAYLOAD,
    Frame,
    FrameDecoder,
    Kind,
    Oversize,
    TooBigError,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NAMESPACE = "containerd-namespace-ttrpc"  # the metadata key of containerd's namespace

_MESSAGE_LIMIT = 64 << 10  # characters of an error message that are sent
_LONGEST = 1 << 62  # ns; 146 years, which counts as no limit
_STATUS = {status.value: status for status in Status}


class _RefusedError(Exception):
    """A frame is answered with an error and opens no call."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


class RequestReceived(NamedTuple):
    """A call by the peer.

    ``timeout`` is in seconds from now: None for no limit, zero or less if the
    caller's deadline has already passed.  ``pairs`` is the metadata as received.
    """

    stream_id: int
    service: str
    method: str
    payload: bytes
    timeout: float | None = None
    pairs: Iterable[wire_pb2.KeyValue] = ()

    @property
    def metadata(self) -> dict[str, list[str]]:
        """The metadata by lower-case key.  Built on access, since few methods use it."""
        metadata: dict[str, list[str]] = {}
        for pair in self.pairs:
            metadata.setdefault(pair.key.lower(), []).append(pair.value)
        return metadata


class ResponseReceived(NamedTuple):
    """The peer's answer to a call.  ``payload`` is empty unless ``status`` is OK."""

    stream_id: int
    status: Status
    message: str = ""
    payload: bytes = b""


class ServerProtocol:
    """The server's side of one connection."""

    def __init__(self) -> None:
        self._decoder = FrameDecoder()
        self._last_id = 0
        self._out: list[bytes] = []
        self.unsent = 0  # bytes that data_to_send() would return

    @property
    def incomplete(self) -> tuple[int, int]:
        """The bytes received of an incomplete frame, and those to come of one over the limit."""
        return self._decoder.buffered, self._decoder.discard

    def resume(self, discard: int) -> None:
        """Discard so many bytes: they belong to a message over the limit."""
        self._decoder.discard = discard

    def receive_data(self, data: bytes | bytearray) -> list[RequestReceived]:
        """Take bytes from the peer; return the requests they complete.

        For a malformed frame, an error response on its stream is queued for
        :meth:`data_to_send`.  The other streams are not affected.
        """
        events = []
        for item in self._decoder.receive(data):
            try:
                event = self._receive(item)
            except _RefusedError as refusal:
                self.send_error(item.stream_id, refusal.status, str(refusal))
            else:
                if event is not None:
                    events.append(event)
        return events

    def _receive(self, item: Frame | Oversize) -> RequestReceived | None:
        if isinstance(item, Oversize):
            text = f"a message of {item.length} bytes is over the limit of {MAX_PAYLOAD}"
            raise _RefusedError(Status.RESOURCE_EXHAUSTED, text)
        if item.kind != Kind.REQUEST:
            return None
        if item.stream_id % 2 == 0:
            raise _RefusedError(
                Status.INVALID_ARGUMENT, "StreamID must be odd for client initiated streams"
            )
        if item.stream_id <= self._last_id:
            raise _RefusedError(
                Status.INVALID_ARGUMENT, "StreamID cannot be re-used and must increment"
            )
        self._last_id = item.stream_id
        try:
            request = wire_pb2.Request.FromString(item.payload)
        except DecodeError as exc:
            text = f"the frame is not a ttrpc Request: {exc}"
            raise _RefusedError(Status.INVALID_ARGUMENT, text) from exc
        timeout = request.timeout_nano
        return RequestReceived(
            item.stream_id,
            request.service,
            request.method,
            request.payload,
            timeout / 1e9 if timeout else None,
            request.metadata or (),
        )

    def send_reply(self, stream_id: int, payload: bytes) -> None:
        """Queue a reply.  If it is too big for one frame, queue an error instead."""
        try:
            self._send(stream_id, wire_pb2.Response(payload=payload))
        except TooBigError as exc:
            self.send_error(stream_id, exc.status, f"the reply does not fit: {exc}")

    def send_error(self, stream_id: int, status: Status, message: str) -> None:
        """Queue an error.  ``message`` becomes one line of printable characters.

        It may contain a path, which may have any bytes, and managers print it.
        """
        text = printable(message[:_MESSAGE_LIMIT])
        error = wire_pb2.Status(code=status.value, message=text)
        self._send(stream_id, wire_pb2.Response(status=error))

    def _send(self, stream_id: int, response: wire_pb2.Response) -> None:
        data = encode(stream_id, Kind.RESPONSE, response.SerializeToString())
        self._out.append(data)
        self.unsent += len(data)

    def data_to_send(self) -> bytes:
        """Return the bytes queued for the peer since the last call, in order."""
        data = b"".join(self._out)
        self._out.clear()
        self.unsent = 0
        return data

    def put_back(self, data: bytes) -> None:
        """Queue again the bytes of :meth:`data_to_send` that the socket did not take."""
        if data:
            self._out.insert(0, data)
            self.unsent += len(data)


class ClientProtocol:
    """The client's side of one connection; ``next_id`` is that of its next stream."""

    def __init__(self, next_id: int = 1) -> None:
        self._decoder = FrameDecoder()
        self._next_id = next_id
        self.foreign = False  # the peer replied on a stream that was never opened

    def encode_request(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[int, bytes]:
        """Return the id of a new stream and the frame that opens it.

        The frames must go out in the order of their ids.  ``timeout`` is in seconds.

        :raises TooBigError: the request does not fit into a frame; no id is allocated.
        """
        request = wire_pb2.Request(service=service, method=method, payload=payload)
        if timeout is not None:
            # Zero would mean no limit; a passed deadline is sent as a negative number.
            request.timeout_nano = int(min(max(timeout, 0) * 1e9, _LONGEST)) or -1
        for key, value in metadata.items():
            request.metadata.add(key=key.lower(), value=value)
        stream_id = self._next_id
        frame = encode(stream_id, Kind.REQUEST, request.SerializeToString())
        self._next_id += 2
        return stream_id, frame

    def receive_data(self, data: bytes | bytearray) -> list[ResponseReceived]:
        """Take bytes from the peer; return the responses they complete.

        A response may be for a call that has ended: ttrpc cannot cancel a call at the
        peer.  The caller ignores it.  A response on a stream that was never opened sets
        :attr:`foreign`: the peer speaks another protocol, such as HTTP.
        """
        responses = []
        for item in self._decoder.receive(data):
            answers = isinstance(item, Oversize) or item.kind == Kind.RESPONSE
            if answers and (item.stream_id % 2 == 0 or item.stream_id >= self._next_id):
                self.foreign = True
            if isinstance(item, Oversize):
                text = f"the reply of {item.length} bytes is over the limit of {MAX_PAYLOAD}"
                response = ResponseReceived(item.stream_id, Status.RESOURCE_EXHAUSTED, text)
            elif item.kind == Kind.RESPONSE:
                response = _response(item)
            else:
                continue
            responses.append(response)
        return responses


def _response(frame: Frame) -> ResponseReceived:
    try:
        response = wire_pb2.Response.FromString(frame.payload)
    except DecodeError as exc:
        text = f"the peer's frame is not a ttrpc Response: {exc}"
        return ResponseReceived(frame.stream_id, Status.INTERNAL, text)
    error = response.status
    if error.code == Status.OK.value:
        return ResponseReceived(frame.stream_id, Status.OK, payload=response.payload)
    status = _STATUS.get(error.code, Status.UNKNOWN)
    return ResponseReceived(frame.stream_id, status, error.message)
