"""A file in memory with the state of a process, which a killed writer never leaves half written.

The file has two slots, and one byte that names the current slot.  A write fills the other slot
and then changes the byte.  If the writer is killed, the file has the earlier state or the
new one.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import ClassVar, Self

from shim.errors import InvalidError
from shim.linux import libc

# Bytes at which the slots begin; the file is sparse.
_FIRST, _SECOND = 64, 1 << 28
_LONGEST = _SECOND - _FIRST
# The byte before the first state.  The file has a zero there if the writer was killed just
# before it changed the byte, or if other bytes of the file were written earlier.
_NONE = (b"", b"\0")
_LARGE = 64 << 10  # bytes; the memory of a longer state is freed once it is replaced
_HEADER = struct.Struct("<II")  # length and checksum


class StateSlot:
    """The state in the memfd ``fd``, which this object owns."""

    NAME: ClassVar = "trio-shim-state"

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._current = os.pread(fd, 1, 0)
        self._size = 0  # bytes of the last state that this object wrote

    @classmethod
    def new(cls) -> StateSlot:
        """Return a new slot without a state.

        :raises OSError: no fd is left.
        """
        return cls(os.memfd_create(cls.NAME, os.MFD_CLOEXEC))

    def write(self, state: bytes) -> None:
        """Replace the state.

        :raises OSError: no memory is left; the earlier state stays.
        """
        following = b"2" if self._current == b"1" else b"1"
        data = _HEADER.pack(len(state), zlib.crc32(state)) + state
        at = _FIRST if following == b"1" else _SECOND
        count = os.pwrite(self.fd, data, at)
        while count < len(data):  # a signal, or a file in memory that is nearly full
            count += os.pwrite(self.fd, memoryview(data)[count:], at + count)
        os.pwrite(self.fd, following, 0)
        self._current = following
        earlier, self._size = self._size, len(data)
        if earlier > _LARGE:
            libc.punch_hole(self.fd, _SECOND if following == b"1" else _FIRST, earlier)

    def read(self) -> bytes:
        """Return the state, empty if none was written.

        :raises InvalidError: the file holds no state.
        """
        if self._current in _NONE:
            return b""
        at = _FIRST if self._current == b"1" else _SECOND
        header = os.pread(self.fd, _HEADER.size, at)
        if len(header) < _HEADER.size:
            raise InvalidError("the state of a daemon is damaged: it cannot be continued")
        size, checksum = _HEADER.unpack(header)
        state = os.pread(self.fd, min(size, _LONGEST), at + _HEADER.size)
        if len(state) != size or zlib.crc32(state) != checksum:
            raise InvalidError("the state of a daemon is damaged: it cannot be continued")
        return state

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
