"""stats: show the resource usage of containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shimctl.cli.app import declare
from shimctl.cli.parameters import CONTAINER, Where, output_options, search_options

if TYPE_CHECKING:
    from shimctl.cli.output import Out
    from shimctl.discover import Found
    from shimctl.values import Stats


@declare("stats", example="shimctl stats redis")
@click.argument(
    "ids", metavar="[ID...]", nargs=-1, type=CONTAINER, help="Default: every container."
)
@search_options
@output_options
async def command(ids: tuple[str, ...], where: Where, out: Out) -> None:
    """Show the resource usage of containers."""
    from shimctl.cli.connected import open_found
    from shimctl.discover import list_shims
    from shimctl.values import Status

    if ids:
        shims = [await where.find(name) for name in ids]
    else:
        shims = [
            found
            for found in await list_shims(states=where.states)
            if found.status in (Status.RUNNING, Status.PAUSED)
            if where.namespace in ("", found.namespace)
        ]
    measured = []
    for found in shims:
        async with open_found(found) as task:
            measured.append((found, await task.stats()))
    data = [
        {"namespace": found.namespace, "id": found.id, "stats": stats} for found, stats in measured
    ]
    headers = (
        *("NAMESPACE", "ID", "CPU", "MEMORY", "LIMIT", "PIDS", "LIMIT"),
        *("USER", "SYSTEM", "READ", "WRITTEN"),
    )
    out.show_table(data, headers, [_usage(found, stats) for found, stats in measured], wide=4)


def _usage(found: Found, stats: Stats) -> tuple[object, ...]:
    from shimctl.cli import render

    return (
        *(found.namespace, found.id, render.seconds(stats.cpu)),
        *(render.size(stats.memory), render.size(stats.memory_limit)),
        *(stats.pids, stats.pids_limit),
        *(render.seconds(stats.cpu_user), render.seconds(stats.cpu_system)),
        *(render.size(stats.io_read), render.size(stats.io_written)),
    )
