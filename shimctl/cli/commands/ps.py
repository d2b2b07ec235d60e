"""ps: list containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shimctl.cli.app import declare
from shimctl.cli.parameters import Where, format_option, output_options, search_options

if TYPE_CHECKING:
    from collections import Counter
    from datetime import datetime

    from shimctl.cli.output import Out
    from shimctl.listing.row import Row

HEADERS = (
    *("NAMESPACE", "ID", "NAME", "IMAGE", "COMMAND", "AGE", "STATUS", "PID"),
    *("RUNTIME", "SHIM", "VERSION", "BUNDLE OR SOCKET", "ADDRESS", "MADE BY", "DETAIL"),
)
_WIDE = 7  # the last columns
_ELASTIC = (2, 3, 4)  # the columns that are cut to the width of a terminal
_FINISHED = ("created", "exited")  # as docker, `ps` hides these


@declare("ps", example="shimctl ps -a --filter status=exited")
@click.option("-a", "--all", "everything", is_flag=True, help="Also those created or exited.")
@click.option("-q", "--quiet", is_flag=True, help="Print only ids.")
@click.option("--no-trunc", is_flag=True, help="Do not shorten ids and commands.")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="KEY=VALUE",
    help="Only those with this status, name, label, image, pod, ...; may be repeated.",
)
@format_option
@search_options
@output_options
def command(
    everything: bool,
    quiet: bool,
    no_trunc: bool,
    filters: tuple[str, ...],
    template: str,
    where: Where,
    out: Out,
) -> None:
    r"""List containers.

    Names and images are those of the manager: of the CRI, nerdctl, Docker or shimctl.
    Containers whose shim is dead, or does not answer, are always listed.  In the column
    SHIM of -o wide a number in parentheses is that of the containers of the shim, and VERSION
    is the version of the shim.
    Filters with one key are alternatives; those of several keys must all match.
    A --format is a template as docker's: '{{.ID}}', '{{json .}}' or
    'table {{.ID}}\t{{.Names}}'.
    """
    from collections import Counter
    from datetime import UTC, datetime

    from shimctl.cli import render
    from shimctl.discover import list_shims
    from shimctl.listing.collect import rows_of
    from shimctl.listing.fields import listed
    from shimctl.listing.filters import Filters
    from shimctl.listing.formatting import Format
    from shimctl.on_threads import function

    chosen, wanted = Filters(filters), Format(template) if template else None
    shims = function(list_shims)(states=where.states)
    rows = [
        row
        for row in rows_of(one for one in shims if where.namespace in ("", one.namespace))
        if everything or chosen.wants_finished or row.state not in _FINISHED
        if chosen.match(row)
    ]
    now = datetime.now(UTC)
    if quiet:
        out.lines(row.found.id if no_trunc else row.id for row in rows if row.found.id)
    elif wanted is not None:
        documents = (listed(row, now, whole=no_trunc) for row in rows)
        out.text(wanted.render(documents, lambda value: render.as_json(value, indent=None)))
    else:
        served = Counter(found.shim_pid for found in shims)
        cells = [_cells(row, now, served, whole=no_trunc or out.wide) for row in rows]
        elastic = () if no_trunc else _ELASTIC
        values = [row.values() for row in rows]
        out.show_table(values, HEADERS, cells, wide=_WIDE, elastic=elastic)


def _cells(row: Row, now: datetime, served: Counter[int], *, whole: bool) -> tuple[object, ...]:
    from shimctl import units
    from shimctl.cli import render
    from shimctl.listing.fields import COMMAND, shortened

    found, origin = row.found, row.origin
    started = row.started_at or row.created_at
    count = served[found.shim_pid]
    shim = f"{found.shim_pid} ({count})" if count > 1 else found.shim_pid
    age = units.duration((now - started).total_seconds()) if started else None
    return (
        *(found.namespace, found.id if whole else row.id, origin.name or None),
        *(origin.image or None, shortened(" ".join(row.command), 0 if whole else COMMAND)),
        *(age, render.status(row.status(now)), found.pid or None),
        *(row.runtime or None, shim if found.shim_pid else None, found.version or None),
        found.bundle or found.address,
        *(found.address, "shimctl" if found.managed else None, found.detail),
    )
