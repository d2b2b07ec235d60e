"""Output that no client reads, under ``spool`` and ``drop``, and the part that is kept."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import trio

from shim.linux import fifos
from shim.stdio.spool import Overflow
from tests.stdio.conftest import read_some
from tests.stdio.whole.client import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from shim.stdio.streams import Stdio
    from tests.stdio.conftest import Rig

MIB = 1 << 20
# More than a pipe and a fifo hold together.
MUCH = 5 * MIB
MARKER = re.compile(rb"\[trio-shim: (\d+) bytes of output dropped\]\n")


def spool_in(directory: Path, limit: int = 64 * MIB) -> Overflow:
    return Overflow(limit, (str(directory),))


def put(rig: Rig, name: str, size: int, *, width: int = 7) -> bytes:
    """Put lines into a file for the process to write; return them."""
    data = b"".join(b"%0*d\n" % (width, i) for i in range(size // (width + 1)))
    (rig.directory / name).write_bytes(data)
    return data


async def run_dry(rig: Rig, stdio: Stdio, script: str) -> None:
    """Run ``script`` to its end, and until its pipe is empty again."""
    process = fifos.Fd(os.dup(stdio.child_fds[1]))
    wait = await rig.run(stdio, script)
    with trio.fail_after(20):
        assert (await wait()).exit_status == 0
    await wait_until(lambda: not fifos.unread(process))
    process.close()


def kept_of(received: bytes, data: bytes) -> tuple[bytes, bytes]:
    """Check the marker in the received part of ``data``; return the bytes before and after
    it.
    """
    found = MARKER.search(received)
    assert found is not None, received[-200:]
    kept = received[: found.start()]
    assert kept.endswith(b"\n"), "it is on a line of its own"
    if len(kept) + int(found[1]) > len(data):  # the newline is the marker's
        kept = kept[:-1]
        assert not kept.endswith(b"\n")
    assert data.startswith(kept)
    assert len(kept) + int(found[1]) == len(data)
    return kept, received[found.end() :]


async def run_to_written(
    rig: Rig, stdio: Stdio, script: str
) -> Callable[[], Coroutine[Any, Any, Any]]:
    """Run ``script`` until it makes the file ``written`` and its pipe is empty.

    Return the function that waits for its exit.
    """
    process = fifos.Fd(os.dup(stdio.child_fds[1]))
    wait = await rig.run(stdio, script)
    await wait_until((rig.directory / "written").exists)
    await wait_until(lambda: not fifos.unread(process))
    process.close()
    return wait


async def read_to_marker(out: fifos.Fd) -> bytes:
    """Read until a marker of dropped output has come."""
    received = b""
    while not MARKER.search(received):
        received += await read_some(out)
    return received
