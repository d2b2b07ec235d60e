"""shutdown: ask the shim of a container to exit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shimctl.cli.app import declare
from shimctl.cli.parameters import Where, one_id, output_options, search_options

if TYPE_CHECKING:
    from shimctl.cli.output import Out
    from shimctl.discover import Found

_LEAVING = 20.0  # s for a shim to exit; containerd's publishes its last events for up to 15
_STAYING = 1.0  # s for a shim that still has the container, and so will not exit


@declare("shutdown", example="shimctl shutdown redis")
@one_id
@click.option("--now", is_flag=True, help="Ask it to exit without waiting.")
@search_options
@output_options
async def command(id_: str, now: bool, where: Where, out: Out) -> int:
    """Ask the shim of a container to exit.

    A shim that has containers does not exit, and the command fails; delete them first.
    """
    from shimctl.cli.changing import change_each

    async def shutdown(found: Found) -> dict[str, object]:
        return {"shim_pid": await _shutdown(found, now)}

    return await change_each([id_], where, out, shutdown)


async def _shutdown(found: Found, now: bool) -> int:
    import os
    from contextlib import suppress

    import trio

    from shim.errors import NotFoundError, TimedOutError, WrongStateError
    from shimctl.cli.connected import open_found

    async with open_found(found) as task:
        pid = (await task.shim.connect(task.id)).shim_pid
        patience = _LEAVING
        with suppress(NotFoundError):
            await task.state()
            patience = _STAYING
        fd = os.pidfd_open(pid)
        try:
            await task.shim.shutdown(now=now)
            with trio.move_on_after(patience) as scope:
                await trio.lowlevel.wait_readable(fd)
        finally:
            os.close(fd)
    if scope.cancelled_caught and patience == _LEAVING:
        raise TimedOutError(f"the shim of {found.id} did not exit within {_LEAVING:.0f} s")
    if scope.cancelled_caught:
        raise WrongStateError(
            f"the shim of {found.id} does not exit because it has containers; "
            f"try `shimctl delete {found.id}`"
        )
    return pid
