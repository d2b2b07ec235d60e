"""Containers of a killed daemon that its replacement cannot continue: their state is not valid.

Such a container is ended, and its exit is reported with an unknown status.  So its manager
deletes it as any other, and the other containers of the daemon are not affected.
"""

from __future__ import annotations

import base64
import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from shim import log
from shim.api.task_pb2 import CreateTaskRequest
from shim.container.container import Container
from shim.errors import ShimError

if TYPE_CHECKING:
    from shim.container.host import Host
    from shim.recovery.inherited import Inherited
    from shim.recovery.slot import StateSlot


def end_lost(
    id_: str, slot: StateSlot, inherited: Inherited, host: Host, error: Exception
) -> Container | None:
    """End the processes of container ``id_``; return the container, which has exited.

    Return None if its bundle is not known, or was removed.  ``slot`` has its state, and is
    owned from now on.  ``error`` is the reason why the container cannot be continued.
    """
    if isinstance(error, (ShimError, OSError)):
        log.error("cannot go on with a container: it is lost", id=id_, error=error)
    else:
        log.crash("cannot go on with a container: it is lost", error, id=id_)
    for exec_id, pidfd in inherited.take_all(f"pidfd/{id_}/").items():
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        host.deposit.drop(f"pidfd/{id_}/{exec_id}")
    try:
        return Container.lost(_request_of(id_, slot, host), slot, host)
    except (ShimError, OSError) as exc:
        log.error("cannot report the exit of a lost container", id=id_, error=exc)
    slot.close()
    host.deposit.drop(f"state/{id_}")
    return None


def _request_of(id_: str, slot: StateSlot, host: Host) -> CreateTaskRequest:
    """Return the request in the state, or one with the bundle where containerd has it."""
    try:
        constants = json.loads(slot.read())["constants"]
        request = CreateTaskRequest.FromString(base64.b64decode(constants["request"]))
    except (ShimError, OSError, ValueError, LookupError, TypeError, DecodeError) as exc:
        log.debug("a lost container's request is not known", id=id_, error=exc)
    else:
        if request.id == id_ and request.bundle:
            return request
    return CreateTaskRequest(id=id_, bundle=str(Path(host.bundle).with_name(id_)))
