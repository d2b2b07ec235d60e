"""Counts the bytes that a socket has received and sent, exactly, also if the process is killed.

The counts and the received bytes are in a file in memory, which survives the process.  The
kernel writes both during the system call (``msg_len`` of recvmmsg(2) and sendmmsg(2)), so they
are right even if the process is killed just after the call.
"""

from __future__ import annotations

import itertools
import os
import struct

from shim.linux import libc
from shim.linux.mapping import PAGE, Mapping

# Bytes of one read, at most.
CHUNK = 8192
# Bytes of the buffer that stay allocated; the memory beyond is freed once it is not used.
_LARGE = 64 << 10

# Received and sent bytes have two entries each, and a byte with the number of the valid entry.
# A change writes the other entry first, and then that byte.
_RECEIVED, _SENT = 0, 1
_ENTRY_AT, _ENTRY_SIZE = 64, 128
_BUFFER = PAGE

# struct msghdr of recvmsg(2): name, its length, iovec, their number, control, its length,
# flags; then msg_len, which the kernel writes.
_HEADER = struct.Struct("@PIPNPNi0P")
_COUNT = struct.Struct("@I0P")
# The iovec, and our numbers: the offset of the received bytes in the buffer or the number of
# bytes sent before, the offset of the unhandled bytes, and the number of advance().
_REST = struct.Struct("@I0PPN0QQQQ")
_COUNT_AT = _HEADER.size
_IOVEC_AT = _COUNT_AT + _COUNT.size
# Bytes to send that fit here are copied: that is faster than to find their address.
_SMALL_AT = _ENTRY_AT + 4 * _ENTRY_SIZE


class Transfers:
    """The part of the file ``fd`` from ``offset`` on, which is mapped, and grown if needed.

    ``longest`` is the number of received bytes that the caller may leave unhandled.

    :raises OSError: no memory is left.
    """

    def __init__(self, fd: int, offset: int, longest: int) -> None:
        pages = -(-(longest + 2 * _LARGE) // PAGE)
        self._end = _BUFFER + pages * PAGE
        if os.fstat(fd).st_size < offset + self._end:
            os.ftruncate(fd, offset + self._end)
        self._mapping = Mapping(fd, self._end, offset)
        self._map, self._address = self._mapping.view, self._mapping.address
        self._owned = False  # the entries have the addresses of this process
        # Received bytes lie in the buffer up to ``base``, those from ``handled`` on are kept.
        base, self._handled, self._discard, count = self._read(_RECEIVED)
        self._base = base + count
        sent, _, _, count = self._read(_SENT)
        self._sent = sent + count

    @property
    def sent(self) -> int:
        """The number of bytes that :meth:`send` has sent, of all objects for the file."""
        return self._sent

    @property
    def unhandled(self) -> tuple[bytes, int]:
        """The received bytes that :meth:`advance` has not dropped, and its ``discard``."""
        data = bytes(self._map[_BUFFER + self._handled : _BUFFER + self._base])
        return data, self._discard

    def receive(self, fd: int) -> bytes:
        """Receive at most ``CHUNK`` bytes, without waiting; empty at the end of the stream.

        :raises BlockingIOError: no byte has arrived.
        :raises OSError: the connection is broken.
        """
        base = self._base
        room = min(CHUNK, self._end - _BUFFER - base)
        at = self._write(_RECEIVED, self._address + _BUFFER + base, room, base)
        libc.receive_counted(fd, self._address + at)
        (count,) = _COUNT.unpack_from(self._map, at + _COUNT_AT)
        self._base += count
        return bytes(self._map[_BUFFER + base : _BUFFER + base + count])

    def advance(self, unhandled: int, discard: int) -> None:
        """Drop the received bytes except the last ``unhandled`` ones, and keep ``discard``."""
        high = self._base
        self._handled, self._discard = high - unhandled, discard
        if not unhandled:
            self._handled = self._base = 0
        self._write(_RECEIVED, 0, 0, self._base)
        if high <= _LARGE:
            return
        if 0 < unhandled <= self._handled:
            # The entry's bytes must stay until the next entry, so they may not overlap.
            kept = self._map[_BUFFER + self._handled : _BUFFER + self._base]
            self._map[_BUFFER : _BUFFER + unhandled] = kept
            self._handled, self._base = 0, unhandled
            self._write(_RECEIVED, 0, 0, self._base)
        if self._base <= _LARGE:
            used = -(-high // PAGE) * PAGE
            self._mapping.free(_BUFFER + _LARGE, used - _LARGE)

    def send(self, fd: int, data: bytes, offset: int) -> int:
        """Send ``data`` from ``offset`` on, without waiting; return the number of bytes sent.

        :raises BlockingIOError: the send buffer is full.
        :raises OSError: the connection is broken.
        """
        size = len(data) - offset
        if size <= _BUFFER - _SMALL_AT:
            self._map[_SMALL_AT : _SMALL_AT + size] = data[offset:]
            address = self._address + _SMALL_AT
        else:
            address = libc.address_of(data) + offset
        at = self._write(_SENT, address, size, self._sent)
        libc.send_counted(fd, self._address + at)
        (count,) = _COUNT.unpack_from(self._map, at + _COUNT_AT)
        self._sent += count
        return int(count)

    def close(self) -> None:
        """Unmap the file."""
        self._mapping.close()

    def _read(self, kind: int) -> tuple[int, int, int, int]:
        """Return the three numbers of the valid entry, and its count of bytes."""
        at = self._entry(kind, self._map[kind]) + _COUNT_AT
        count, _, _, base, handled, discard = _REST.unpack_from(self._map, at)
        return base, handled, discard, count

    def _write(self, kind: int, address: int, size: int, base: int) -> int:
        """Make an entry valid that has moved no byte to or from ``address``; return its offset."""
        if not self._owned:
            self._own()
        other = 1 - self._map[kind]
        at = self._entry(kind, other)
        numbers = (base, self._handled, self._discard)
        _REST.pack_into(self._map, at + _COUNT_AT, 0, address, size, *numbers)
        self._map[kind] = other
        return at

    def _own(self) -> None:
        for kind, number in itertools.product((_RECEIVED, _SENT), (0, 1)):
            at = self._entry(kind, number)
            _HEADER.pack_into(self._map, at, 0, 0, self._address + at + _IOVEC_AT, 1, 0, 0, 0)
        self._owned = True

    @staticmethod
    def _entry(kind: int, number: int) -> int:
        return _ENTRY_AT + (2 * kind + number) * _ENTRY_SIZE
