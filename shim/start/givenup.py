"""Records each daemon that the fork server no longer replaces, because it died too often.

A record is one line of JSON in a file beside the fork servers' sockets, and one line in the
log of the daemon.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from shim import log, names
from shim.errors import ShimError
from shim.recovery.inherited import DAEMON, LOG
from shim.recovery.slot import StateSlot
from shim.start.profile import Profile

if TYPE_CHECKING:
    from shim.start.keptfds import Kept

# Bytes at which the file begins anew.
_LONGEST = 1 << 16


def report(directory: str, kept: Kept, reason: str) -> None:
    """Write the lines for the daemon ``kept``; an error of it has no effect."""
    with suppress(ShimError, OSError):
        with StateSlot(os.dup(kept.fds[DAEMON])) as slot:
            settings = Profile.decode(slot.read()).settings
        text = "the fork server gives up a shim: its containers end with it"
        if LOG in kept.fds:
            fields: dict[str, object] = {"id": settings.id, "reason": reason}
            log.Log(kept.fds[LOG]).write(log.ERROR, text, fields)
        line = {
            "time": int(time.time()),
            "namespace": settings.namespace,
            "id": settings.id,
            "bundle": settings.bundle,
            "address": settings.address,
            "reason": reason,
        }
        path = f"{directory}/{names.GIVEN_UP}"
        with open(os.open(path, _FLAGS, 0o600), "ab", buffering=0) as file:
            if file.tell() > _LONGEST:
                file.truncate(0)
            file.write(json.dumps(line).encode() + b"\n")


_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
