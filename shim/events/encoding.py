"""The format of the events journal: a sequence of records that are independent of each other.

       0        4        8        12
       +--------+--------+--------+------------------
       |  mark  | length | crc32  | payload (length)
       +--------+--------+--------+------------------

``length`` and ``crc32`` are big-endian; the checksum covers the length and the
payload.  ``mark`` is ``WAITS`` for an event to deliver, and is overwritten in
place by ``DONE`` once the event is acknowledged.  Damage elsewhere, or the loss of
the end of the file, therefore never causes a second delivery of an acknowledged event.

A damaged record costs no other record: reading continues at the next mark that
begins a whole record.

Bytes in, records out; no I/O happens here, and payloads are not interpreted.

Source: none; this project defines the format.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

WAITS = b"\xe5Ev?"
DONE = b"\xdaeV."

_HEADER = struct.Struct(">4sII")
_LENGTH = struct.Struct(">I")
# Bytes before the payload.
HEADER = _HEADER.size


@dataclass(frozen=True, slots=True)
class Record:
    """One event to deliver, and the offset of its record in bytes."""

    offset: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Reading:
    """The content of a journal.  ``end`` is the offset after its last whole record.

    ``damaged`` is the number of bytes outside whole records, ``last`` the payload of the last
    record, delivered or not.
    """

    waiting: list[Record]
    end: int
    damaged: int
    last: bytes = b""


def encode(payload: bytes) -> bytes:
    """Return the record of an event to deliver."""
    return _HEADER.pack(WAITS, len(payload), _checksum(payload)) + payload


def _checksum(payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_LENGTH.pack(len(payload))))


def decode(data: bytes) -> Reading:
    """Return the events to deliver, in the order in which they were written."""
    waiting: list[Record] = []
    offset = end = damaged = 0
    last = b""
    while offset < len(data):
        payload = _payload_at(data, offset)
        if payload is None:
            following = _next_mark(data, offset + 1)
            damaged += following - offset
            offset = following
            continue
        if data.startswith(WAITS, offset):
            waiting.append(Record(offset, payload))
        offset = end = offset + HEADER + len(payload)
        last = payload
    return Reading(waiting, end, damaged, last)


def payloads(data: bytes) -> Iterator[bytes]:
    """Yield every event of a journal in order, the acknowledged ones too."""
    offset = 0
    while offset < len(data):
        payload = _payload_at(data, offset)
        if payload is None:
            offset = _next_mark(data, offset + 1)
            continue
        yield payload
        offset += HEADER + len(payload)


def _payload_at(data: bytes, offset: int) -> bytes | None:
    if offset + HEADER > len(data):
        return None
    mark, length, checksum = _HEADER.unpack_from(data, offset)
    begin = offset + HEADER
    if mark not in (WAITS, DONE) or begin + length > len(data):
        return None
    payload = data[begin : begin + length]
    return payload if _checksum(payload) == checksum else None


def _next_mark(data: bytes, offset: int) -> int:
    found = [at for mark in (WAITS, DONE) if (at := data.find(mark, offset)) >= 0]
    return min(found, default=len(data))
