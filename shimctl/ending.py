"""Delete a container, shut down its shim, and remove what both left on the host.

Source: containerd core/runtime/v2 (shim.go, delete) for the order.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from shim.errors import (
    NotFoundError,
    ShimError,
    TimedOutError,
    UnavailableError,
    WrongStateError,
)
from shim.linux.sockets import can_connect, socket_path
from shimctl.backend import TRIO, portable
from shimctl.exits import find_address
from shimctl.launching import DEFAULT_RUNTIME, run_delete
from shimctl.remains import RemainsError, traces_of

if TYPE_CHECKING:
    from shimctl.backend import Backend
    from shimctl.client import Shim, Task
    from shimctl.remains import Traces
    from shimctl.values import Exited

_ANSWER = 5  # s for the shim to answer Connect
_SHUTDOWN = 3  # s for the shim to exit; containerd's limit
_ATTEMPTS = 2  # to end a shim by its own calls
_KILLED = 10  # s between SIGKILL and the exit
_GONE = 2  # s for processes, mounts and cgroups to disappear
_LOOK = 0.05  # s between two checks for them, or two attempts to delete


@portable
async def dispose(
    backend: Backend,
    bundle: str | Path,
    container: str,
    *,
    address: str = "",
    namespace: str = "default",
    runtime: str = DEFAULT_RUNTIME,
    alone: bool = True,
) -> Exited | None:
    """End the container in ``bundle`` and its shim in any state; return the exit status.

    A running container is killed.  The shim gets a Shutdown call.  It is killed if it
    does not exit within 3 s of that, or does not answer for 5 s.  If a fork server then
    replaces it, the replacement is ended in the same way.  ``alone`` is False for a shim that
    has other containers; such a shim is not killed.  If the shim is dead or was killed, its
    ``delete`` command kills the processes and removes the files that it left.  The bundle
    stays.  The caller may repeat this after an interrupted attempt.

    If the stock shim's ``delete`` has to clean up, the bundle's directory must have the
    container's id as its name: that ``delete`` looks for the bundle by that name, beside
    its working directory.

    ``address`` is the shim's; the default is the address that :func:`shimctl.launch` wrote to the
    bundle.  Returns None if the exit status is unknown.  Each step has a time limit; all
    together take two minutes at most.

    :raises RemainsError: processes, mounts or cgroups of the container remain; the
        attributes of the error list them.
    """
    bundle = Path(bundle)
    address = address or find_address(bundle)
    traces = traces_of(bundle, container)
    try:
        exited, deleted = await _end(
            bundle, container, address, namespace, runtime, alone=alone, backend=backend
        )
        await _check(traces, mounts=not deleted, backend=backend)
    finally:
        traces.close()
    return exited


async def delete_and_check(task: Task, bundle: Path, pid: int, *, force: bool) -> Exited | None:
    """Delete a container that another manager started; check that nothing of it remains.

    ``pid`` is that of its init process.  With ``force`` a running container is killed.

    :raises RemainsError: processes, mounts or cgroups of the container remain.
    :raises ShimError: the shim could not delete the container; the message is the shim's.
    """
    traces = traces_of(bundle, task.id, pid)
    try:
        try:
            exited = await (end(task) if force else task.delete())
        except ShimError:
            if force:
                traces.check(mounts=True)
            raise
        await _check(traces, mounts=False, backend=TRIO)
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
    backend: Backend,
) -> tuple[Exited | None, bool]:
    """End the container and the shim; also return whether the shim itself did all of it."""
    exited, left = None, False
    # A killed shim may be replaced; the replacement answers.
    for _ in range(_ATTEMPTS if address else 0):
        with suppress(ShimError, OSError):
            async with backend.connect(address, namespace=namespace) as shim:
                # Probe with a cheap call before the calls that may take 30 s.
                pid = await _pid_of(shim, container)
                exited = await end(shim.task(container)) or exited
                left = await _shut_down(shim, pid, insist=alone, backend=backend)
        if left or not alone:
            break
        with suppress(OSError):
            await _kill(address, backend)
        if not _is_served(address):
            break
    deleted = exited is not None and left
    if not left:
        with suppress(ShimError, OSError):
            last = await run_delete.on(backend)(
                bundle, container, namespace=namespace, runtime=runtime
            )
            exited = exited or last
    if alone:
        remove_dead_socket(address)
    return exited, deleted


def _is_served(address: str) -> bool:
    with suppress(ShimError, OSError, ValueError):  # the address may be malformed
        return can_connect(address)
    return False


def remove_dead_socket(address: str) -> None:
    """Remove the socket at ``address`` if no process listens; a killed shim leaves it."""
    if socket_path(address):
        with suppress(ShimError, OSError, ValueError):  # the address may be malformed
            if not can_connect(address):
                Path(socket_path(address)).unlink(missing_ok=True)


async def _check(traces: Traces, *, mounts: bool, backend: Backend) -> None:
    """Wait up to ``_GONE`` seconds until nothing of the container remains.

    :raises RemainsError: something remains.
    """
    deadline = time.monotonic() + _GONE
    while True:
        try:
            traces.check(mounts=mounts)
        except RemainsError:
            if time.monotonic() >= deadline:
                raise
        else:
            return
        await _pause(backend)


async def _pause(backend: Backend) -> None:
    never = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        await backend.wait_readable(never, _LOOK)
    finally:
        backend.closing(never)
        os.close(never)


async def end(task: Task) -> Exited | None:
    """Delete the process and return its exit status; kill the process first if it runs.

    Returns None if the shim has no such process.

    :raises UnavailableError: the connection to the shim is lost.
    :raises TimedOutError: the shim does not answer.
    :raises ShimError: the shim cannot delete the killed process; the message is the shim's.
    """
    deadline, killed = time.monotonic() + _KILLED, False
    while True:
        try:
            return await task.delete()
        except NotFoundError:
            return None
        except (UnavailableError, TimedOutError):
            raise
        except ShimError:  # the process runs, or its create failed half-way
            if killed:
                raise
        killed = True
        try:
            # A process that has exited may count as running until its output is read.
            with suppress(NotFoundError):
                await task.kill(signal.SIGKILL, everyone=not task.exec_id)
            await task.wait(timeout=_KILLED)
        except WrongStateError:  # the Start of another client, which may be dead, is under way
            killed = time.monotonic() >= deadline
            await _pause(task.shim.backend)
        except ShimError:
            pass  # Delete has the reason


async def _pid_of(shim: Shim, container: str) -> int:
    """Return the pid of the shim.

    A Connect without an id would keep an older trio shim running for 5 s: that shim takes
    it for a ``start`` whose Create follows.
    """
    try:
        return (await shim.connect(container, timeout=_ANSWER)).shim_pid
    except NotFoundError:  # some shims refuse an unknown id
        return (await shim.connect(timeout=_ANSWER)).shim_pid


async def _shut_down(shim: Shim, pid: int, *, insist: bool, backend: Backend) -> bool:
    """Call Shutdown; return whether the shim exited.  ``insist`` kills it if it does not."""
    fd = os.pidfd_open(pid)
    try:
        await shim.shutdown(timeout=_SHUTDOWN)
        if await backend.wait_readable(fd, _SHUTDOWN):
            return True
        if insist:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            await backend.wait_readable(fd, _KILLED)
    finally:
        os.close(fd)
    return False


async def _kill(address: str, backend: Backend) -> None:
    """Kill the shim that listens on ``address`` without answering, if there is one."""
    from shimctl.discover import shim_at  # late: rarely needed, and it loads psutil

    if pid := shim_at(address):
        fd = os.pidfd_open(pid)
        try:
            if shim_at(address) == pid:  # so the pidfd is that of the shim
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                await backend.wait_readable(fd, _KILLED)
        finally:
            os.close(fd)
