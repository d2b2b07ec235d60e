"""stats: show the resource usage of containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shimctl.cli.app import declare
from shimctl.cli.parameters import (
    CONTAINER,
    Where,
    format_option,
    output_options,
    search_options,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shimctl.cli.output import Out
    from shimctl.discover import Found
    from shimctl.listing.formatting import Format
    from shimctl.listing.measuring import Measured

_DELAY = 1.0  # s between two measurements, as docker's
_HEADERS = (
    *("NAMESPACE", "ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "PIDS", "BLOCK I/O"),
    *("PROBLEM", "CPU TIME", "PIDS LIMIT", "SHIM", "SHIM MEMORY"),
)
_WIDE = 4
_ELASTIC = (2, 8)


@declare("stats", example="shimctl stats --no-stream redis")
@click.argument("ids", metavar="[ID...]", nargs=-1, type=CONTAINER, help="Default: all that run.")
@click.option("--no-stream", is_flag=True, help="Measure once.")
@click.option("--no-trunc", is_flag=True, help="Do not shorten ids.")
@format_option
@search_options
@output_options
async def command(
    ids: tuple[str, ...], no_stream: bool, no_trunc: bool, template: str, where: Where, out: Out
) -> None:
    """Show the resource usage of containers.

    It measures every second until interrupted; on a terminal q ends it, too.  A container
    without figures has a row with the reason, for example when its cgroup is gone or its
    shim does not answer.  --format is a template as docker's, with .CPUPerc, .MemUsage,
    .PIDs and so on.
    """
    from shimctl.cli.watching import watch
    from shimctl.listing.formatting import Format

    view = _View(ids, where, Format(template) if template else None, whole=no_trunc)
    await watch(view, out, delay=_DELAY, iterations=int(no_stream), sort="id")


class _View:
    """The usage of the named containers, or of all that run."""

    def __init__(
        self, ids: Sequence[str], where: Where, template: Format | None, *, whole: bool
    ) -> None:
        from shimctl.listing.measuring import Meter

        self._ids = list(dict.fromkeys(ids))
        self._where = where
        self._template = template
        self._whole = whole
        self._meter = Meter()
        self._last: list[Measured] = []

    async def look(self) -> None:
        """Measure all containers concurrently.

        :raises NotFoundError: a named container does not exist.
        """
        self._last = await self._meter.measure(await self._shims())

    async def _shims(self) -> list[Found]:
        from shimctl.discover import list_shims
        from shimctl.values import Status

        if self._ids:
            return [await self._where.find(name) for name in self._ids]
        return [
            found
            for found in await list_shims(states=self._where.states)
            if found.id and found.exited is None
            if found.status not in (Status.CREATED, Status.STOPPED)
            if self._where.namespace in ("", found.namespace)
        ]

    def value(self, sort: str) -> object:
        """Return the last measurement for JSON and YAML."""
        return [
            {
                "namespace": one.found.namespace,
                "id": one.found.id,
                "stats": one.stats,
                "usage": one.usage,
            }
            for one in self._last
        ]

    def page(self, sort: str, out: Out) -> str:
        """Return the last measurement as a table, or by the template."""
        from shim.text import printable
        from shimctl.cli import render
        from shimctl.listing.collect import row_of
        from shimctl.listing.fields import measured

        if self._template is None:
            cells = [self._cells(one) for one in self._last]
            return out.table(_HEADERS, cells, wide=_WIDE, elastic=_ELASTIC)
        documents = (
            measured(row_of(one.found), one.usage, whole=self._whole) for one in self._last
        )
        text = self._template.render(documents, lambda value: render.as_json(value, indent=None))
        return "\n".join(map(printable, text.split("\n")[:-1]))

    def _cells(self, one: Measured) -> tuple[object, ...]:
        from shimctl import units
        from shimctl.listing.collect import row_of
        from shimctl.listing.fields import memory, percent

        row, usage = row_of(one.found), one.usage
        read, written = units.size(usage.io_read), units.size(usage.io_written)
        used = None if usage.cpu_seconds is None else units.seconds(usage.cpu_seconds)
        return (
            *(one.found.namespace, one.found.id if self._whole else row.id),
            *(row.origin.name or None, percent(usage.cpu_percent), memory(usage)),
            *(percent(usage.memory_percent), usage.pids, f"{read or '-'} / {written or '-'}"),
            *(usage.problem, used, usage.pids_limit),
            *(one.found.shim_pid or None, units.size(usage.shim_memory)),
        )
