"""Reading a pipe within a time limit, without an event loop."""

from __future__ import annotations

import os
import select
import time


def read_until(fd: int, seconds: float) -> tuple[bytes, bool]:
    """Return the bytes that arrive within ``seconds``, and whether the end was reached."""
    deadline = time.monotonic() + seconds
    data = b""
    while select.select([fd], [], [], max(0, deadline - time.monotonic()))[0]:
        chunk = os.read(fd, 4096)
        if not chunk:
            return data, True
        data += chunk
    return data, False
