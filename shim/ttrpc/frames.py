"""The ttrpc wire format: a ten-byte header, then at most 4 MiB of payload.

       0       4       8      9      10
       +-------+-------+------+------+-----------------
       |  len  |  id   | kind | flag |  payload (len)
       +-------+-------+------+------+-----------------

``len`` and ``id`` are big-endian.  This module converts bytes to frames and back; it does
no I/O and does not parse payloads.

Source: containerd/ttrpc, PROTOCOL.md "Message Frame" and channel.go.
"""

from __future__ import annotations

import enum
import struct
from typing import ClassVar, NamedTuple

from grpclib.const import Status

from shim.errors import ShimError

MAX_PAYLOAD = 4 << 20  # bytes, inclusive

_HEADER = struct.Struct(">IIBB")
LONGEST = _HEADER.size + MAX_PAYLOAD  # bytes of a frame


class TooBigError(ShimError):
    """A message does not fit into one frame; ttrpc does not split messages."""

    status: ClassVar[Status] = Status.RESOURCE_EXHAUSTED


class Kind(enum.IntEnum):
    """The type of a frame's payload."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3


class Flag(enum.IntFlag):
    """The state of the stream after a frame.  Unknown bits are kept."""

    NONE = 0
    REMOTE_CLOSED = 1  # the sender sends no more
    REMOTE_OPEN = 2  # the sender continues with data frames
    NO_DATA = 4  # the frame carries no message, not an empty one


class Frame(NamedTuple):
    """One message on one stream.

    ``kind`` is a plain int: a peer may speak a newer ttrpc, and an unknown kind must be
    ignored, not rejected.  ``flags`` are bits of :class:`Flag`.
    """

    stream_id: int
    kind: int
    payload: bytes = b""
    flags: int = Flag.NONE

    def encode(self) -> bytes:
        """Return the bytes of the frame on the wire.

        :raises TooBigError: the payload is over the limit.
        """
        return encode(*self)


def encode(stream_id: int, kind: int, payload: bytes = b"", flags: int = Flag.NONE) -> bytes:
    """Return the bytes on the wire of a :class:`Frame` with these fields.

    :raises TooBigError: the payload is over the limit.
    """
    length = len(payload)
    if length > MAX_PAYLOAD:
        raise TooBigError(f"a message of {length} bytes is over ttrpc's limit of {MAX_PAYLOAD}")
    return _HEADER.pack(length, stream_id, kind, flags) + payload


class Oversize(NamedTuple):
    """A frame whose ``length`` in bytes exceeds the limit; its payload is discarded."""

    stream_id: int
    kind: int
    length: int


def extent(data: bytes | bytearray) -> int:
    """Return how many bytes at the beginning of ``data`` are whole frames within the limit."""
    end, available = 0, len(data)
    while (body := end + _HEADER.size) <= available:
        length = _HEADER.unpack_from(data, end)[0]
        if length > MAX_PAYLOAD or body + length > available:
            break
        end = body + length
    return end


def is_too_long(data: bytes | bytearray) -> bool:
    """Return whether ``data`` begins with the header of a frame over the limit."""
    return len(data) >= _HEADER.size and _HEADER.unpack_from(data)[0] > MAX_PAYLOAD


class FrameDecoder:
    """Converts bytes in pieces of any size into whole frames, in order."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.discard = 0  # bytes of an oversize payload that have not arrived yet

    @property
    def buffered(self) -> int:
        """The bytes received of an incomplete frame."""
        return len(self._buffer)

    def receive(self, data: bytes | bytearray) -> list[Frame | Oversize]:
        """Return the frames that ``data`` completes.

        An :class:`Oversize` is returned as soon as its header is complete.
        """
        buffer = self._buffer
        if buffer:
            buffer += data
            data = buffer
        items: list[Frame | Oversize] = []
        start, available = 0, len(data)
        while True:
            if self.discard:
                skipped = min(self.discard, available - start)
                self.discard -= skipped
                start += skipped
            body = start + _HEADER.size
            if body > available:
                break
            length, stream_id, kind, flags = _HEADER.unpack_from(data, start)
            if length > MAX_PAYLOAD:
                items.append(Oversize(stream_id, kind, length))
                self.discard = length
                start = body
                continue
            end = body + length
            if end > available:
                break
            items.append(Frame(stream_id, kind, bytes(data[body:end]), flags))
            start = end
        if data is buffer:
            del buffer[:start]
        elif start < available:  # few reads end within a frame
            buffer += data[start:]
        return items
