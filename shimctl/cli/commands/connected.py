"""From the id on the command line to a conversation with its shim."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from shim.errors import NotFoundError, UnavailableError
from shimctl.client import connect
from shimctl.discover import find_shim
from shimctl.exits import read_exit
from shimctl.values import Status, Stdio, TaskState

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import AsyncIterator

    from shimctl.client import Task
    from shimctl.discover import Found
    from shimctl.values import Exited


@asynccontextmanager
async def open_task(args: Namespace) -> AsyncIterator[Task]:
    """Find the container named on the command line, and connect to its shim."""
    found = await find_shim(args.id, args.namespace, states=args.state)
    async with open_found(found) as task:
        yield task


@asynccontextmanager
async def open_found(found: Found) -> AsyncIterator[Task]:
    """Connect to the shim of ``found``.

    :raises UnavailableError: it has none.
    """
    if not found.address:
        raise UnavailableError(f"{found.id} has no shim; `shimctl delete -f {found.id}` cleans up")
    async with connect(found.address, namespace=found.namespace) as shim:
        yield shim.task(found.id)


async def state_of(found: Found) -> TaskState:
    """Ask for the state of a container; where its shim is gone, read its exit record."""
    try:
        async with open_found(found) as task:
            return await task.state()
    except (UnavailableError, NotFoundError):
        exited = read_exit(found.bundle) if found.bundle else None
        if exited is None:
            raise
    return TaskState(
        id=found.id,
        exec_id="",
        bundle=found.bundle,
        pid=exited.pid,
        status=Status.STOPPED,
        stdio=Stdio(),
        exit_status=exited.exit_status,
        exited_at=exited.exited_at,
    )


async def wait_for(found: Found) -> Exited:
    """Wait for the end of a container; where its shim is gone, read its exit record."""
    try:
        async with open_found(found) as task:
            await task.state()  # in time, which a stranger that says nothing could not
            return await task.wait()
    except (UnavailableError, NotFoundError):
        exited = read_exit(found.bundle) if found.bundle else None
        if exited is None:
            raise
        if exited.reason:
            raise UnavailableError(f"nobody knows how {found.id} ended: {exited.reason}") from None
        return exited
