"""Start and restart containers that the command line names, if shimctl itself made them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from shim.errors import (
    NotFoundError,
    ShimError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
)
from shimctl.bundles import read_config
from shimctl.cli.connected import open_found, state_of, stop_found
from shimctl.host.initprocess import is_running
from shimctl.listing.manager import manager_of, run_again
from shimctl.standalone import restarting, runlock
from shimctl.standalone.runlock import Part
from shimctl.values import Status

if TYPE_CHECKING:
    from shimctl.discover import Found
    from shimctl.values import TaskState


async def start_found(found: Found) -> dict[str, object]:
    """Start a created container, or run an exited one of shimctl again; return its pid.

    :raises UnsupportedError: another manager made it, and it has exited.
    :raises WrongStateError: it runs.
    """
    state = await _state_of(found)
    if state is not None and state.status is not Status.STOPPED:
        return {"pid": await _start_created(found)}
    _check_managed(found, "start")
    if state is None:
        _check_ended(found)
    return {"pid": await restarting.run_again(found)}


async def _start_created(found: Found) -> int:
    """Start a created container; no other command can remove it meanwhile."""
    async with AsyncExitStack() as stack:
        if found.managed:
            stack.enter_context(runlock.held(Path(found.bundle), Part.CHANGE))
        task = await stack.enter_async_context(open_found(found))
        return await task.start()
    raise AssertionError("the stack suppresses no error")


async def restart_found(
    found: Found, number: int | None, grace: float | None
) -> dict[str, object]:
    """Stop a container of shimctl, as :func:`stop_found` does, and run it again.

    One that was only created is started.  One whose shim is dead is killed.  Returns its
    pid, and what :func:`stop_found` returns.

    :raises UnsupportedError: another manager made it.
    """
    _check_managed(found, "restart")
    state = await _state_of(found)
    stopped: dict[str, object] = {"signal": None, "killed": state is None}
    if state is not None and state.status is Status.CREATED:
        return {"pid": await _start_created(found), **stopped}

    async def stop() -> None:
        stopped.update(await stop_found(found, number, grace))

    return {"pid": await restarting.run_again(found, stop if state else None), **stopped}


async def _state_of(found: Found) -> TaskState | None:
    """Return the state of a container, None if its shim is dead and wrote no exit record."""
    try:
        return await state_of(found)
    except (UnavailableError, NotFoundError):
        return None


def _check_managed(found: Found, verb: str) -> None:
    """:raises UnsupportedError: another manager made the container."""
    if found.managed:
        return
    try:
        annotations = read_config(Path(found.bundle)).get("annotations") or {}
    except ShimError:
        annotations = {}
    manager = manager_of(found.namespace, annotations)
    how = run_again(manager, found.namespace, found.id, verb)
    raise UnsupportedError(
        f"cannot {verb} {found.id}: it is a container of another manager; {how}"
    )


def _check_ended(found: Found) -> None:
    """:raises WrongStateError: its shim is dead, but its init process still runs."""
    if is_running(found.id, found.namespace, found.bundle):
        raise WrongStateError(
            f"cannot start {found.id}: its shim is dead, and its init process still runs; "
            f"`shimctl restart {found.id}` kills it first"
        )
