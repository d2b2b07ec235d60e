"""Remove a container that has a working directory, in any state, completely."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING

from shim import records
from shim.errors import NotFoundError, WrongStateError
from shim.exit import UNKNOWN_STATUS, Exit
from shimctl import directories, ending
from shimctl.backend import portable
from shimctl.exits import find_address
from shimctl.launching import DEFAULT_RUNTIME
from shimctl.standalone import runlock, workdir
from shimctl.standalone.runlock import Part

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from shimctl.backend import Backend
    from shimctl.values import Exited


_PAUSE = 0.05  # s between two attempts to take the lock, which has no event
_LOCKED = 10  # s to wait for another command that changes the container


@portable
async def dispose(
    backend: Backend,
    work: Path,
    container: str,
    namespace: str,
    address: str = "",
    check: Callable[[], Awaitable[object]] | None = None,
) -> Exited | None:
    """End a container of ``shimctl`` in any state; remove its shim and its directory.

    ``check`` is called once no other command can start the container; an error that it
    raises keeps the container.

    Returns its exit, or None if neither a shim nor a record has it, or if another process
    removes it at the same time.

    :raises WrongStateError: a file system is still mounted in the directory, or another
        command changes the container for more than 10 s.
    """
    try:
        fd = runlock.open_file(work)
    except NotFoundError:
        return None
    try:
        if await _take(backend, fd, work):
            if check is not None:
                await check()
            return await dispose_held.on(backend)(work, container, namespace, address)
    finally:
        os.close(fd)
    return None


async def _take(backend: Backend, fd: int, work: Path) -> bool:
    """Take the lock of the change; return False if ``work`` was removed meanwhile."""
    deadline = time.monotonic() + _LOCKED
    never = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        while True:
            try:
                runlock.take(fd, Part.CHANGE, work)
            except NotFoundError:
                return False
            except WrongStateError:
                if time.monotonic() > deadline:
                    raise
            else:
                return True
            await backend.wait_readable(never, _PAUSE)
    finally:
        os.close(never)


@portable
async def dispose_held(
    backend: Backend, work: Path, container: str, namespace: str, address: str = ""
) -> Exited | None:
    """Do what :func:`dispose` does, for a caller that holds the lock of the change."""
    address = address or find_address(work)
    exited = await end.on(backend)(work, container, namespace, address)
    keep_exit(work, exited)  # if the directory cannot be removed, the container has still ended
    await backend.in_thread(partial(workdir.remove, work))
    if is_alone(work, address):  # those beside it may have been removed at the same time
        ending.remove_dead_socket(address)
    return exited


@portable
async def end(
    backend: Backend, work: Path, container: str, namespace: str, address: str = ""
) -> Exited | None:
    """End a container and its shim in any state, but keep its directory."""
    address = address or find_address(work)
    return await ending.dispose.on(backend)(
        work,
        container,
        address=address,
        namespace=namespace,
        runtime=_binary(work),
        alone=is_alone(work, address),
    )


def keep_exit(work: Path, exited: Exited | None) -> Exit:
    """Return the exit record of an ended container; write one if its shim wrote none."""
    if (found := records.read_exit(str(work))) is not None:
        return found
    if exited is None or exited.exited_at is None:
        reason = "its shim ended without an exit record"
        made = Exit(0, UNKNOWN_STATUS, time.time_ns(), reason)
    else:
        at = int(exited.exited_at.timestamp() * 1_000_000) * 1000
        made = Exit(exited.pid, exited.exit_status, at)
    records.write_exit(str(work), made)
    return made


def is_alone(work: Path, address: str) -> bool:
    """Return whether the shim serves no other container of ``shimctl``, as in a pod."""
    others = directories.own_bundles()
    return all(other == work or find_address(other) != address for other in others)


def _binary(work: Path) -> str:
    try:
        return os.fsdecode((work / "shim-binary-path").read_bytes())
    except OSError:
        return DEFAULT_RUNTIME
