"""Stop a container: a signal, a time to end, then SIGKILL.

Source: Docker's reference of ``docker container stop``.
"""

from __future__ import annotations

import math
import os
import select
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from shim.errors import NotFoundError, TimedOutError, UnavailableError
from shimctl.values import Status

if TYPE_CHECKING:
    from shimctl.task import Task

GRACE = 10  # s between the signal and SIGKILL, as docker's
_KILLED = 10  # s between SIGKILL and the exit


async def stop(task: Task, number: int, grace: float = GRACE) -> bool:
    """End the init process of a container; return whether SIGKILL was necessary.

    It gets the signal ``number``, and SIGKILL if it still runs after ``grace`` seconds; an
    infinite grace is a wait without a limit.  A
    paused container is resumed, or it could not handle the signal.  An exited one is left
    as it is.

    :raises TimedOutError: it still runs 10 s after SIGKILL.
    :raises UnavailableError: the shim is gone, and the process still runs.
    """
    state = await task.state()
    if state.status is Status.STOPPED:
        return False
    try:
        process = os.pidfd_open(state.pid)
    except ProcessLookupError:
        return False
    try:
        with suppress(NotFoundError):  # it exited meanwhile
            await task.kill(number)
            if state.status in (Status.PAUSED, Status.PAUSING):
                await task.resume()
            if grace:
                try:
                    await task.wait(timeout=None if math.isinf(grace) else grace)
                except TimedOutError:
                    pass
                else:
                    return False
            await task.kill(signal.SIGKILL)
            try:
                await task.wait(timeout=_KILLED)
            except TimedOutError:
                raise TimedOutError(
                    f"{task.id} still runs {_KILLED} s after SIGKILL; "
                    f"the kernel waits for a disk or a mount of it"
                ) from None
            return True
    except UnavailableError:
        # The manager may have deleted the container at once, and with it the shim.
        if not select.select([process], [], [], 0)[0]:
            raise
    finally:
        os.close(process)
    return False
