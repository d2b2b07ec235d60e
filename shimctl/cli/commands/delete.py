"""delete: delete exited containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shimctl.cli.app import declare
from shimctl.cli.parameters import Where, output_options, search_options, several_ids

if TYPE_CHECKING:
    from shimctl.cli.output import Out
    from shimctl.discover import Found

_ANSWER = 10  # s for the shim to return the state


@declare("delete", example="shimctl delete redis")
@several_ids
@click.option("-f", "--force", is_flag=True, help="Kill it first if it runs.")
@search_options
@output_options
async def command(ids: tuple[str, ...], force: bool, where: Where, out: Out) -> int:
    """Delete exited containers.

    The shim of each exits, and the files that `shimctl run` made for it are removed.  If
    processes, mounts or cgroups of the container remain, the command lists them and exits
    with 125; it can be repeated.
    """
    from dataclasses import asdict
    from functools import partial
    from pathlib import Path

    from shimctl.cli.changing import change_each
    from shimctl.cli.connected import open_found
    from shimctl.ending import delete_and_check
    from shimctl.standalone.run import dispose

    async def delete(found: Found) -> dict[str, object]:
        check = None if force else partial(_check_ended, found)
        if check is not None:
            await check()  # before it waits for a command that starts or removes it
        if found.managed:
            exited = await dispose(
                *(Path(found.bundle), found.id, found.namespace, found.address), check
            )
        else:
            async with open_found(found) as task:
                exited = await delete_and_check(task, Path(found.bundle), found.pid, force=force)
                await task.shim.shutdown()
        return asdict(exited) if exited else {}

    return await change_each(ids, where, out, delete)


async def _check_ended(found: Found) -> None:
    from shim.errors import NotFoundError, TimedOutError, UnavailableError, WrongStateError
    from shimctl.cli.connected import open_found
    from shimctl.host.initprocess import is_running
    from shimctl.values import Status

    try:
        async with open_found(found) as task:
            state = await task.state(timeout=_ANSWER)
    except (UnavailableError, NotFoundError):
        if not found.managed:
            raise
        if is_running(found.id, found.namespace, found.bundle):
            raise WrongStateError(f"{found.id} runs without its shim; use --force") from None
        return  # dispose() handles every other state
    except TimedOutError:
        raise TimedOutError(
            f"the shim of {found.id} does not answer within {_ANSWER} s, so the container may "
            "run; use --force"
        ) from None
    if state.status not in (Status.STOPPED, Status.CREATED):
        raise WrongStateError(f"{found.id} is {state.status.value}; kill it first, or use --force")
