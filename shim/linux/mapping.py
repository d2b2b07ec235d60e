"""A file in memory that is mapped without an fd.

``mmap.mmap`` keeps a copy of the fd as long as the mapping, before Python 3.13 always.  A daemon
has a mapping for each connection, so it would have an fd more for each.

Source: mmap(2), madvise(2).
"""

from __future__ import annotations

import ctypes
import os

from shim.linux.libc import library

PAGE = os.sysconf("SC_PAGE_SIZE")

# Source: linux/mman.h and asm-generic/mman-common.h.
_PROT_READ, _PROT_WRITE, _MAP_SHARED = 1, 2, 1
_MADV_REMOVE = 9
_FAILED = ctypes.c_void_p(-1).value

_mmap = ctypes.CFUNCTYPE(
    ctypes.c_void_p,
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64),
    use_errno=True,
)(("mmap", library))


class Mapping:
    """``size`` bytes of the file ``fd`` from ``offset`` on; ``view`` has the bytes.

    The file has to be that long as long as the mapping.

    :raises OSError: no memory is left.
    """

    def __init__(self, fd: int, size: int, offset: int) -> None:
        self.address = _mmap(None, size, _PROT_READ | _PROT_WRITE, _MAP_SHARED, fd, offset)
        if self.address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._size = size
        self._array = (ctypes.c_char * size).from_address(self.address)
        self.view = memoryview(self._array).cast("B")

    def free(self, start: int, size: int) -> None:
        """Free the memory of whole pages: their bytes are zero from now on."""
        at, length = ctypes.c_void_p(self.address + start), ctypes.c_size_t(size)
        if library.madvise(at, length, _MADV_REMOVE) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def close(self) -> None:
        """Unmap the file; a second call does nothing."""
        size, self._size = self._size, 0
        if size:
            self.view.release()
            library.munmap(ctypes.c_void_p(self.address), ctypes.c_size_t(size))
