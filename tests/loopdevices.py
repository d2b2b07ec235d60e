"""Loop devices are the machine's: a test looks only at the devices of its files."""

from __future__ import annotations

import time
from pathlib import Path

_LIMIT = 10.0  # seconds


def attached_below(path: str) -> list[Path]:
    """Return ``/sys/block/NAME/loop`` of each device of the file ``path`` or of one below it."""
    found = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = file.read_text().rstrip("\n")
        except OSError:  # detached since it was listed
            continue
        if backing == path or backing.startswith(f"{path}/"):
            found.append(file.parent)
    return found


def wait_detached(path: str) -> None:
    """Wait until no device has a file at or below ``path``.

    The kernel detaches a device at its last close: another process that looks for a free
    device may have it open for a moment.
    """
    deadline = time.monotonic() + _LIMIT
    while found := attached_below(path):
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
