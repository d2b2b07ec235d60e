"""Connect to the shims of containers, and read the exit records of dead shims."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from shim.errors import InvalidError, NotFoundError, UnavailableError
from shim.text import printable
from shimctl.cli.parse import signal_number
from shimctl.client import connect
from shimctl.exits import read_exit
from shimctl.standalone.stopsignal import stopping_of
from shimctl.stopping import GRACE, stop
from shimctl.values import Status, Stdio, TaskState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shimctl.client import Task
    from shimctl.discover import Found
    from shimctl.standalone.stopsignal import Stopping
    from shimctl.values import Exited


@asynccontextmanager
async def open_found(found: Found) -> AsyncIterator[Task]:
    """Connect to the shim of ``found``.

    :raises UnavailableError: the container has no shim, or the connection fails.
    """
    remedy = f"`shimctl delete -f {found.id}` ends it" if found.managed else "its manager ends it"
    if not found.address:
        raise UnavailableError(f"{found.id} has no shim; {remedy}")
    async with AsyncExitStack() as stack:
        try:
            shim = await stack.enter_async_context(
                connect(found.address, namespace=found.namespace)
            )
        except UnavailableError as exc:
            raise UnavailableError(f"the shim of {found.id} is dead: {exc}; {remedy}") from None
        yield shim.task(found.id)


async def state_of(found: Found) -> TaskState:
    """Return a container's state; if its shim is dead, make it from the exit record."""
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


async def stop_signal_of(found: Found, bundle: str) -> int:
    """Return the stop signal of a container; SIGTERM if it has none.

    ``bundle`` is that in its state.

    :raises InvalidError: its stop signal is no signal.
    """
    return _number_of(found, await stopping_of(bundle, found.namespace, found.id))


async def stop_found(
    found: Found, number: int | None, grace: float | None
) -> dict[str, int | bool | None]:
    """Stop a container, which need not have a shim if it has exited.

    Without ``number`` it gets its stop signal, and without ``grace`` it has its own time, or
    10 s.  Returns the signal, None if the container had exited, and whether it was killed.

    :raises InvalidError: its stop signal is no signal.
    """
    state = await state_of(found)
    if state.status is Status.STOPPED:
        return {"signal": None, "killed": False}
    if number is None or grace is None:
        chosen = await stopping_of(state.bundle, found.namespace, found.id)
        number = number or _number_of(found, chosen)
        grace = (GRACE if chosen.grace is None else chosen.grace) if grace is None else grace
    async with open_found(found) as task:
        return {"signal": number, "killed": await stop(task, number, grace)}


def _number_of(found: Found, chosen: Stopping) -> int:
    try:
        return signal_number(chosen.signal or "TERM")
    except ValueError as exc:
        raise InvalidError(
            f"the stop signal of {found.id} is invalid: {exc}; use --signal"
        ) from None


async def wait_for(found: Found) -> Exited:
    """Wait until a container exits; if its shim is dead, read the exit record."""
    try:
        async with open_found(found) as task:
            # Unlike Wait, this has a timeout, which ends the wait for a hung shim.
            await task.state()
            return await task.wait()
    except (UnavailableError, NotFoundError):
        exited = read_exit(found.bundle) if found.bundle else None
        if exited is None:
            raise
        if exited.reason:
            raise UnavailableError(
                f"the exit status of {found.id} is unknown: {exited.reason}"
            ) from None
        return exited


def print_detached(container: str) -> None:
    """Print to stderr that the client detached, and how to attach again."""
    name = printable(container)
    print(
        f"shimctl: detached, {name} keeps running; `shimctl attach {name}` attaches again",
        file=sys.stderr,
    )
