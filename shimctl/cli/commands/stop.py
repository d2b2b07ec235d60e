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


@declare("stop", example="shimctl stop -t 30 redis web")
@several_ids
@click.option(
    *("-s", "--signal"),
    type=SIGNAL,
    metavar="SIGNAL",
    help="The first signal, by name or number (default: the container's, or TERM).",
)
@click.option(
    *("-t", "--time", "grace"),
    type=GRACE,
    metavar="SECONDS",
    help="The time between the signal and SIGKILL (default: the container's, or 10).",
)
@search_options
@output_options
async def command(
    ids: tuple[str, ...], signal: int | None, grace: float | None, where: Where, out: Out
) -> int:
    """Stop containers.

    Each gets a signal, and SIGKILL if it still runs later.  A paused one is resumed.  One
    that has exited is left as it is, which is a success.  `shimctl rm` deletes it; its
    manager may start it again.

    The container's own signal is that of its image, or of `docker run --stop-signal`: from
    the bundle's annotation, Docker's file about the container, or containerd.
    """
    from functools import partial

    from shimctl.cli.changing import change_each
    from shimctl.cli.connected import stop_found

    return await change_each(ids, where, out, partial(stop_found, number=signal, grace=grace))
