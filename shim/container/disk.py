"""Waits until the disk of a bundle responds, before the daemon itself uses its files.

A disk that hangs would stop the daemon's only thread, and with it every container of the pod.
So a thread creates a file without a name in the bundle first.  A disk that begins to hang just
after that stops the daemon all the same.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from shim import log
from shim.errors import TimedOutError
from shim.offthread import run_off_thread, wait_unchanged

if TYPE_CHECKING:
    from shim.container.bundle import Bundle

# Seconds for the disk to respond, and if it has not responded in that time before.
LIMIT = 5.0
AGAIN = 0.1


async def wait_responsive(bundle: Bundle, again: float = LIMIT) -> None:
    """Return when the disk of ``bundle`` responds; at once if the bundle is in memory.

    :raises TimedOutError: it does not respond within ``LIMIT`` seconds, or within ``again``
        seconds if it has not responded before.
    """
    if bundle.in_memory:
        return
    path = str(bundle.path)
    await wait_unchanged(path, again)  # one thread at most waits for a disk that hangs for long
    await run_off_thread(partial(_touch, path), f"use {path}", limit=LIMIT, changes=path)


async def is_responsive(bundle: Bundle, id_: str) -> bool:
    """Return whether files can be removed from ``bundle``; log that they stay if not.

    ``id_`` is that of the container.
    """
    try:
        await wait_responsive(bundle, AGAIN)
    except (TimedOutError, OSError) as exc:
        log.warning("cannot remove files from the bundle", id=id_, error=exc)
        return False
    return True


def _touch(path: str) -> None:
    try:
        os.close(os.open(path, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError:
        return  # it responds; the error of the call itself is more exact
