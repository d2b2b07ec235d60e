"""The end: a container is deleted, its shim leaves, and what neither could do is done.

Source: containerd core/runtime/v2 (shim.go, delete) for the order.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from shim.errors import NotFoundError, ShimError, TimedOutError, UnavailableError
from shim.linux.sockets import can_connect, socket_path
from shimctl.exits import read_address
from shimctl.face import TRIO
from shimctl.launching import DEFAULT_RUNTIME, run_delete

if TYPE_CHECKING:
    from shimctl.client import Shim, Task
    from shimctl.face import Face
    from shimctl.values import Exited

_ANSWER = 5  # s for a shim that has nothing to do for it
_SHUTDOWN = 3  # s, as containerd allows
_KILLED = 10  # s between SIGKILL and the exit


async def dispose(
    bundle: str | Path,
    container: str,
    *,
    address: str = "",
    namespace: str = "default",
    runtime: str = DEFAULT_RUNTIME,
    alone: bool = True,
    face: Face = TRIO,
) -> Exited | None:
    """End the container in ``bundle`` whatever its state, and its shim; say how it ended.

    A container that runs is killed.  The shim is asked to leave, and killed if it
    has not within 3 s, or says nothing for 5 s; ``alone`` False is for one that has
    other containers.  If it is gone or was killed, its ``delete`` ends and removes what
    it left.  The bundle stays.  May be repeated, whatever an earlier one that was cut
    short had done.

    The bundle must have the container's name where Go's shim is to clean up: its
    ``delete`` looks for that beside the directory it is run in.

    ``address`` is the shim's, by default as :func:`launch` noted it in the bundle.
    Returns None if nobody was left who knew how the container ended.  Nothing is an
    error; each step has a bound, and all of them take two minutes at the very most.
    """
    bundle = Path(bundle)
    address = address or read_address(bundle)
    exited, left = None, False
    if address:
        with suppress(ShimError, OSError):
            async with face.connect(address, namespace=namespace) as shim:
                # Who says nothing to this need not be asked what takes longer.
                await shim.connect(timeout=_ANSWER)
                exited = await end(shim.task(container))
                left = await _shut_down(shim, insist=alone, face=face)
    if not left:
        if alone and address:
            with suppress(OSError):
                await _kill(address, face)
        with suppress(ShimError, OSError):
            last = await run_delete(
                bundle, container, namespace=namespace, runtime=runtime, face=face
            )
            exited = exited or last
    if alone and socket_path(address):
        with suppress(ShimError, OSError, ValueError):  # it may be no address
            if not can_connect(address):  # of a shim that was killed
                Path(socket_path(address)).unlink(missing_ok=True)
    return exited


async def end(task: Task) -> Exited | None:
    """Delete the process, after killing it if need be; None if it is not there.

    :raises UnavailableError: the shim is not there.
    :raises TimedOutError: it does not answer.
    """
    try:
        return await task.delete()
    except NotFoundError:
        return None
    except (UnavailableError, TimedOutError):
        raise
    except ShimError:
        pass  # it runs, or half of it was never made
    with suppress(ShimError):
        await task.kill(signal.SIGKILL, everyone=not task.exec_id)
        await task.wait(timeout=_KILLED)
    with suppress(ShimError):
        return await task.delete()
    return None


async def _shut_down(shim: Shim, *, insist: bool, face: Face) -> bool:
    """Ask the shim to exit, and with ``insist`` see to it; say whether it did by itself."""
    fd = os.pidfd_open((await shim.connect(timeout=_SHUTDOWN)).shim_pid)
    try:
        await shim.shutdown(timeout=_SHUTDOWN)
        if await face.readable(fd, _SHUTDOWN):
            return True
        if insist:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            await face.readable(fd, _KILLED)
    finally:
        os.close(fd)
    return False


async def _kill(address: str, face: Face) -> None:
    """End the shim that listens on ``address`` and says nothing, if there is one."""
    from shimctl.discover import shim_at  # for once; it looks at every process

    if pid := shim_at(address):
        fd = os.pidfd_open(pid)
        try:
            if shim_at(address) == pid:  # and so it is what we hold
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                await face.readable(fd, _KILLED)
        finally:
            os.close(fd)
