"""top: show the resource usage of running containers continuously."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shimctl.cli.app import declare
from shimctl.cli.parameters import (
    CONTAINER,
    SECONDS,
    Where,
    integer,
    output_options,
    search_options,
)

if TYPE_CHECKING:
    from shimctl.cli.output import Out

SORTS = ("cpu", "memory", "pids", "io", "id")


@declare("top", example="shimctl top -d 500ms --sort memory")
@click.argument("id_", metavar="[ID]", type=CONTAINER, default="", help="Show its processes.")
@click.option(
    *("-d", "--delay"),
    type=SECONDS,
    default=2.0,
    metavar="SECONDS",
    help="The time between two measurements (default: 2).",
)
@click.option(
    *("-i", "--iterations"),
    type=integer(1, 1_000_000),
    default=0,
    metavar="N",
    help="Stop after N measurements (default: until interrupted).",
)
@click.option(
    *("--sort",),
    type=click.Choice(SORTS),
    default="cpu",
    help="The column to sort by (default: cpu).",
)
@search_options
@output_options
async def command(
    id_: str, delay: float, iterations: int, sort: str, where: Where, out: Out
) -> None:
    """Show the resource usage of containers continuously.

    With an ID it shows the processes of that container.  On a terminal q or Ctrl-C ends it;
    c, m, p, i and n sort by cpu, memory, processes, input and output, and name.  Without a
    terminal it prints one table after another.
    """
    from shimctl.cli.watching import Containers, Processes, watch

    view = Processes(await where.find(id_)) if id_ else Containers(where)
    await watch(view, out, delay=delay, iterations=iterations, sort=sort)
