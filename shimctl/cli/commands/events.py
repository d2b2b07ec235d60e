"""events: print the events of this host's containers, until interrupted."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from shimctl.cli.app import declare
from shimctl.cli.parameters import FILE, TIME, Where, output_options, search_options

if TYPE_CHECKING:
    from datetime import datetime

    from shimctl.cli.output import Out
    from shimctl.standalone.published import Published


@declare("events", example="shimctl events --since 10m --filter event=exit")
@click.option(
    "--since",
    type=TIME,
    metavar="TIME",
    help="First show past events from this time on: 10m ago, 1h30m, or RFC 3339.",
)
@click.option(
    "--until", type=TIME, metavar="TIME", help="End at this time (default: until interrupted)."
)
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="KEY=VALUE",
    help="Show events with this container, event, namespace or image; may be repeated.",
)
@click.option(
    "--containerd",
    "sockets",
    type=FILE,
    multiple=True,
    metavar="SOCKET",
    help="Subscribe to the containerd at another socket, too; may be repeated.",
)
@search_options
@output_options
async def command(
    since: datetime | None,
    until: datetime | None,
    filters: tuple[str, ...],
    sockets: tuple[str, ...],
    where: Where,
    out: Out,
) -> None:
    """Print the events of shimctl's and containerd's containers.

    Any number of these commands may run at once; all see the same events.
    Of past events, --since shows those that an earlier `shimctl events` received, and those
    in the journals of running trio shims.  containerd keeps no past events.
    Filters with the same key are alternatives; events match all keys.
    """
    from shim.text import printable
    from shimctl.standalone.eventfilter import Filter, parse_filters, text_line
    from shimctl.standalone.eventwatch import Sources, watch

    async def write(event: Published) -> None:
        out.stream(event, lambda: printable(text_line(event)))

    def failed(text: str) -> None:
        print(f"shimctl: {printable(text)}", file=sys.stderr)

    wanted = Filter(
        namespace=where.namespace, wanted=parse_filters(filters), since=since, until=until
    )
    await watch(wanted, write, failed, Sources(where.states, sockets))
