"""stop: stop containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shimctl.cli.app import declare
from shimctl.cli.parameters import (
    GRACE,
    SIGNAL,
    Where,
    output_options,
    search_options,
    several_ids,
)

if TYPE_CHECKING:
    from shimctl.cli.output import Out
    from shimctl.discover import Found


@declare("stop", example="shimctl stop -t 30 redis web")
@several_ids
@click.option(
    *("-s", "--signal"),
    type=SIGNAL,
    metavar="SIGNAL",
    help="The first signal, by name or number (default: the image's, or TERM).",
)
@click.option(
    *("-t", "--time", "grace"),
    type=GRACE,
    default=10,
    metavar="SECONDS",
    help="The time between the signal and SIGKILL (default: 10).",
)
@search_options
@output_options
async def command(
    ids: tuple[str, ...], signal: int | None, grace: float, where: Where, out: Out
) -> int:
    """Stop containers.

    Each gets a signal, and SIGKILL if it still runs later.  A paused one is resumed.  One
    that has exited is left as it is, which is a success.  `shimctl rm` deletes it; its
    manager may start it again.
    """
    from shimctl.cli.changing import change_each
    from shimctl.cli.connected import open_found, state_of, stop_signal_of
    from shimctl.stopping import stop
    from shimctl.values import Status

    async def stop_one(found: Found) -> dict[str, object]:
        state = await state_of(found)  # without a shim, too
        if state.status is Status.STOPPED:
            return {"signal": None, "killed": False}
        number = signal or stop_signal_of(state.bundle)
        async with open_found(found) as task:
            return {"signal": number, "killed": await stop(task, number, grace)}

    return await change_each(ids, where, out, stop_one)
