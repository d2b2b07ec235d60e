"""logs: show the output of a container."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import click

from shimctl.cli.app import declare
from shimctl.cli.parameters import LINES, TIME, Where, one_id, search_options_without_n

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import datetime

    from shimctl.discover import Found
    from shimctl.standalone.loglocation import Located


@declare("logs", example="shimctl logs -f -n 100 redis")
@one_id
@click.option("-f", "--follow", is_flag=True, help="Follow until it exits.")
@click.option(
    *("-n", "--tail"),
    type=LINES,
    metavar="N",
    help="Show only the last N lines (default: all).",
)
@click.option(
    "--since",
    type=TIME,
    metavar="TIME",
    help="Show lines from this time on: 10m ago, 1h30m, or RFC 3339.",
)
@click.option("--until", type=TIME, metavar="TIME", help="Show lines up to this time.")
@click.option("-t", "--timestamps", is_flag=True, help="Show each line's time.")
@search_options_without_n
async def command(
    id_: str,
    follow: bool,
    tail: int | None,
    since: datetime | None,
    until: datetime | None,
    timestamps: bool,
    where: Where,
) -> None:
    """Show the output of a container of any manager.

    The log is that of `shimctl run -d`, or the file that CRI-O, containerd's CRI plugin,
    nerdctl or Docker writes.  Both streams are shown in the order of the log.
    An ID with a / in it is the path of a log file, such as one below /var/log/pods.
    """
    from pathlib import Path

    from shim.errors import NotFoundError
    from shimctl.standalone.logentries import Wanted
    from shimctl.standalone.logs import format_of, show

    wanted = Wanted(since=since, tail=tail, timestamps=timestamps, until=until)
    if "/" in id_:
        path = Path(id_)
        if not path.is_file():
            raise NotFoundError(f"there is no log {path}")
        await show(path, format_of(path), wanted, (lambda: False) if follow else None)
        return
    found = await where.find(id_)
    log = await _log_of(found)
    if not follow:
        await show(log.path, log.form, wanted, None)
        return
    async with _ending(found) as is_over:
        await show(log.path, log.form, wanted, is_over)


async def _log_of(found: Found) -> Located:
    from dataclasses import replace

    from shimctl.cli.connected import state_of
    from shimctl.standalone.loglocation import locate, own_log

    if own := own_log(found):
        return own
    state = await state_of(found)
    return locate(replace(found, bundle=found.bundle or state.bundle), state.stdio)


@asynccontextmanager
async def _ending(found: Found) -> AsyncIterator[Callable[[], bool]]:
    """Yield a function that returns whether the container, or its shim, has exited."""
    from shim.errors import ShimError
    from shim.scope import background
    from shimctl.cli.connected import open_found

    over = False

    async def wait() -> None:
        nonlocal over
        try:
            async with open_found(found) as task:
                await task.wait()
        except ShimError:
            pass  # the shim is dead, so its container counts as exited
        over = True

    async with background(wait):
        yield lambda: over
