"""The end: a container is deleted, its shim leaves, and what neither could do is done.

Source: containerd core/runtime/v2 (shim.go, delete) for the order.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from shim.errors import NotFoundError, ShimError, TimedOutError, UnavailableError
from shim.linux.sockets import can_connect, socket_path
from shimctl.exits import read_address
from shimctl.face import TRIO
from shimctl.launching import DEFAULT_RUNTIME, run_delete
from shimctl.remains import RemainsError, traces_of

if TYPE_CHECKING:
    from shimctl.client import Shim, Task
    from shimctl.face import Face
    from shimctl.remains import Traces
    from shimctl.values import Exited

_ANSWER = 5  # s for a shim that has nothing to do for it
_SHUTDOWN = 3  # s, as containerd allows
_KILLED = 10  # s between SIGKILL and the exit
_GONE = 2  # s for processes, mounts and groups to go
_LOOK = 0.05  # s between two looks at them


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
    Returns None if nobody was left who knew how the container ended.  Each step has
    a bound, and all of them take two minutes at the very most.

    :raises RemainsError: processes, mounts or control groups of the container are
        left; its attributes hold them.
    """
    bundle = Path(bundle)
    address = address or read_address(bundle)
    traces = traces_of(bundle, container)
    try:
        exited, deleted = await _end(
            bundle, container, address, namespace, runtime, alone=alone, face=face
        )
        await _check(traces, mounts=not deleted, face=face)
    finally:
        traces.close()
    return exited


async def end_known(task: Task, bundle: Path, pid: int, *, force: bool) -> Exited | None:
    """Delete a container that another manager has, and look for what is left of it.

    ``pid`` is its init's; with ``force`` it is killed first if need be.

    :raises RemainsError: it could not be deleted, and something of it is left.
    :raises ShimError: it could not be deleted, as the shim says it.
    """
    traces = traces_of(bundle, task.id, pid)
    try:
        try:
            exited = await (end(task) if force else task.delete())
        except ShimError:
            if force:
                traces.check(mounts=True)
            raise
        await _check(traces, mounts=False, face=TRIO)
    finally:
        traces.close()
    return exited


async def _end(
    bundle: Path,
    container: str,
    address: str,
    namespace: str,
    runtime: str,
    *,
    alone: bool,
    face: Face,
) -> tuple[Exited | None, bool]:
    """Do what :func:`dispose` does; say whether the shim did all of it."""
    exited, left = None, False
    if address:
        with suppress(ShimError, OSError):
            async with face.connect(address, namespace=namespace) as shim:
                # Who says nothing to this need not be asked what takes longer.
                await shim.connect(timeout=_ANSWER)
                exited = await end(shim.task(container))
                left = await _shut_down(shim, insist=alone, face=face)
    deleted = exited is not None and left
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
    return exited, deleted


async def _check(traces: Traces, *, mounts: bool, face: Face) -> None:
    """Look for what is left until nothing is, for ``_GONE`` seconds.

    :raises RemainsError: something is.
    """
    deadline = time.monotonic() + _GONE
    never = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        while True:
            try:
                traces.check(mounts=mounts)
            except RemainsError:
                if time.monotonic() >= deadline:
                    raise
            else:
                return
            await face.readable(never, _LOOK)
    finally:
        os.close(never)


async def end(task: Task) -> Exited | None:
    """Delete the process, after killing it if need be; None if it is not there.

    :raises UnavailableError: the shim is not there.
    :raises TimedOutError: it does not answer.
    :raises ShimError: it cannot be deleted though it was killed, as the shim says it.
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
    try:
        return await task.delete()
    except NotFoundError:
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
