"""Reading a pipe within a bound, for whom an event loop is too much."""

from __future__ import annotations

import os
import select
import time


def read_until(fd: int, seconds: float) -> tuple[bytes, bool]:
    """Read what comes within ``seconds``; say whether the end came too."""
    deadline = time.monotonic() + seconds
    data = b""
    while select.select([fd], [], [], max(0, deadline - time.monotonic()))[0]:
        chunk = os.read(fd, 4096)
        if not chunk:
            return data, True
        data += chunk
    return data, False
