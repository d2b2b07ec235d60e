"""A state that survives the death of its writer: a file in memory with two slots.

A write goes to the slot that is not current, and then makes it current by one byte.
So a writer that is killed at any moment leaves the state before the write or after it.
"""

from __future__ import annotations

import os
import zlib
from typing import ClassVar, Self

from shim.errors import InvalidError
from shim.linux import libc

# Bytes at which the slots begin; the file is sparse.
_FIRST, _SECOND = 64, 1 << 28
_LONGEST = _SECOND - _FIRST
_LARGE = 64 << 10  # bytes of a state whose memory is given back once it is replaced
_HEADER = 8  # bytes of length and checksum


class StateSlot:
    """The state in the memfd ``fd``, which this object owns."""

    NAME: ClassVar = "trio-shim-state"

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._current = os.pread(fd, 1, 0)
        self._size = 0  # bytes of the last state that this object wrote

    @classmethod
    def new(cls) -> StateSlot:
        """Return a new, empty one.

        :raises OSError: no fd is left.
        """
        return cls(os.memfd_create(cls.NAME, os.MFD_CLOEXEC))

    def write(self, state: bytes) -> None:
        """Replace the state.

        :raises OSError: no memory is left; the earlier state stays.
        """
        following = b"2" if self._current == b"1" else b"1"
        header = len(state).to_bytes(4, "little") + zlib.crc32(state).to_bytes(4, "little")
        at = _FIRST if following == b"1" else _SECOND
        view = memoryview(header + state)
        while view:
            count = os.pwrite(self.fd, view, at)
            view, at = view[count:], at + count
        os.pwrite(self.fd, following, 0)
        self._current = following
        earlier, self._size = self._size, len(header) + len(state)
        if earlier > _LARGE:
            libc.punch_hole(self.fd, _SECOND if following == b"1" else _FIRST, earlier)

    def read(self) -> bytes:
        """Return the state, empty if none was written.

        :raises InvalidError: the file holds no state.
        """
        if not self._current:
            return b""
        at = _FIRST if self._current == b"1" else _SECOND
        header = os.pread(self.fd, _HEADER, at)
        size = int.from_bytes(header[:4], "little")
        state = os.pread(self.fd, min(size, _LONGEST), at + _HEADER)
        if len(state) != size or zlib.crc32(state) != int.from_bytes(header[4:], "little"):
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
