"""Waits until the disk of a bundle responds, before the daemon itself uses its files.

A disk that hangs would stop the daemon's only thread, and with it every container of the pod.
So a thread creates a file without a name in the bundle first; NFS has none, and gets a file
with one.  A disk that begins to hang just after that stops the daemon all the same.
"""

from __future__ import annotations

import errno
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
# The errors of a file system or kernel without O_TMPFILE.  open(2), BUGS.  They need no disk.
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
# No id begins with a dot, and no draft of a record has this ending.
_DRAFT = ".responds"


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


async def is_responsive(bundle: Bundle, id_: str, what: str = "remove files") -> bool:
    """Return whether files of ``bundle`` can be changed; if not, log that as ``what`` failed.

    ``id_`` is that of the container.
    """
    try:
        await wait_responsive(bundle, AGAIN)
    except (TimedOutError, OSError) as exc:
        log.warning(f"cannot {what} in a bundle", id=id_, path=bundle.path, error=exc)
        return False
    return True


def _touch(path: str) -> None:
    try:
        try:
            os.close(os.open(path, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        except OSError as exc:
            if exc.errno not in _NO_TMPFILE:
                raise
            draft = f"{path}/{_DRAFT}"
            flags = os.O_CREAT | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC
            os.close(os.open(draft, flags, 0o600))
            os.unlink(draft)  # noqa: PTH108 - see shim.container.bundle.Bundle
    except OSError:
        return  # it responds; the error of the call itself is more exact
