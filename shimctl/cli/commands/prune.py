"""prune: remove exited containers, unused images and dead sockets."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from shimctl.cli.app import declare
from shimctl.cli.parameters import output_options, state_option

if TYPE_CHECKING:
    from shimctl.cli.output import Out


@declare("prune", example="shimctl prune --dry-run")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option(
    *("-a", "--all", "named_images"),
    is_flag=True,
    help="Also remove unused images that have a reference.",
)
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
@state_option
@output_options
async def command(
    force: bool, named_images: bool, dry_run: bool, state: tuple[str, ...], out: Out
) -> int:
    """Remove exited containers, unused images and dead sockets.

    It lists them, and asks.  The containers are those of `shimctl run` and `create`; those
    of a manager stay, because it deletes them.  An image loses its reference, such as
    oci:LAYOUT:TAG, when another image is prepared by it; -a takes every image that no
    container uses.  A socket is dead if it is older than a minute, no process listens on
    it, and no container has it.
    """
    from shim.errors import InvalidError
    from shimctl.cli.report import report
    from shimctl.standalone.pruning import leftovers

    found = await leftovers(state, named_images=named_images)
    headers = ("KIND", "NAME", "DETAIL")
    rows = [(one.kind, one.name, one.detail or None) for one in found]
    if dry_run:
        out.show_table(
            [{"kind": one.kind, "name": one.name, "detail": one.detail} for one in found],
            *(headers, rows),
        )
        return 0
    if found and not force:
        if not sys.stdin.isatty():
            raise InvalidError(
                "cannot ask without a terminal, so nothing was removed; add --force"
            )
        print(out.table(headers, rows), file=sys.stderr)
        if not click.confirm("Remove these?", default=False, err=True):
            return 1
        # Those that are still there, and unchanged.
        agreed = {(one.kind, one.name, one.detail) for one in found}
        again = await leftovers(state, named_images=named_images)
        found = [one for one in again if (one.kind, one.name, one.detail) in agreed]
    removed: list[str] = []
    code = 0
    for one in found:
        try:
            await one.remove()
        except (Exception, BaseExceptionGroup) as exc:
            code = report(exc, "prune", one.name, several=True)
        else:
            removed.append(one.name)
    out.lines(removed)
    return code
