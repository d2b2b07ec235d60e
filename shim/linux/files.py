"""Reading files that other programs write, within a bound.

No file fills our memory, and the opening of a fifo does not block.
"""

from __future__ import annotations

import errno
import os
import stat

from shim.text import doing

# Bytes of one read at least.
_PART = 4096


def read_whole(path: str, limit: int) -> bytes:
    """Return the content of the file at ``path``, of at most ``limit`` bytes.

    :raises OSError: EFBIG, it is longer; EINVAL, it is not a regular file.
    """
    data = _read(path, limit + 1, tail=False)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"longer than {limit} bytes", path)
    return data


def read_tail(path: str, limit: int) -> bytes:
    """Return the last ``limit`` bytes of the file at ``path``, or all of them.

    :raises OSError: EINVAL, it is not a regular file.
    """
    return _read(path, limit, tail=True)


def _read(path: str, size: int, *, tail: bool) -> bytes:
    with doing("open", path):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        offset = max(0, status.st_size - size) if tail else 0
        # Files in /proc and /sys report the size 0, so read until the end.  A buffer of
        # ``size`` bytes for each read would cost more than the read itself.
        part = min(size, max(status.st_size - offset + 1, _PART))
        data = b""
        while chunk := os.pread(fd, min(part, size - len(data)), offset + len(data)):
            data += chunk
        return data
    finally:
        os.close(fd)
