"""Lock a file between processes.

Source: flock(2): a lock ends with the last process that has the file open.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def try_lock(fd: int) -> Iterator[bool]:
    """Try to lock the file of ``fd`` for the block; yield whether that succeeded.

    The end of the block closes ``fd``.
    """
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)
