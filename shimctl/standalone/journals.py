"""Read the past events in the journals of trio shims, without changing them.

The journal of a shim is in the bundle of its container, and is removed with it.  It has
every event that the manager has not acknowledged, and of the acknowledged ones those
since it was last emptied, which happens when it has grown to 64 KiB.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from shim.api.envelope_pb2 import Envelope
from shim.events.encoding import payloads
from shimctl import directories
from shimctl.standalone.published import published

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shimctl.standalone.published import Published

JOURNAL = "events.journal"
_MOST = 32 << 20  # bytes that are read of one journal


def past_events(states: Sequence[str | Path]) -> Iterator[Published]:
    """Yield the events in the journals of this host; ``states`` are more state directories."""
    for path in _journals(states):
        for payload in payloads(_read(path)):
            try:
                yield published(Envelope.FromString(payload))
            except DecodeError:
                continue


def _journals(states: Sequence[str | Path]) -> Iterator[Path]:
    yield from directories.listed(directories.state_directory(), f"*/*/{JOURNAL}")
    for root in directories.roots(states):
        pattern = f"{directories.BUNDLES}/*/*/{JOURNAL}"
        yield from directories.listed(Path(root), pattern)


def _read(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""  # deleted meanwhile, or no permission
    with open(fd, "rb") as file:
        return file.read(_MOST) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
