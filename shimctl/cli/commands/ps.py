"""ps: list shims and their containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shimctl.cli.app import declare
from shimctl.cli.parameters import Where, output_options, search_options

if TYPE_CHECKING:
    from shimctl.cli.output import Out
    from shimctl.discover import Found


@declare("ps", example="shimctl ps --json")
@search_options
@output_options
async def command(where: Where, out: Out) -> None:
    """List shims and their containers."""
    from shimctl.discover import list_shims

    shims = await list_shims(states=where.states)
    shims = [found for found in shims if where.namespace in ("", found.namespace)]
    headers = (
        *("NAMESPACE", "ID", "PID", "STATUS", "SHIM", "BUNDLE OR SOCKET"),
        *("ADDRESS", "MADE BY", "DETAIL"),
    )
    out.show_table(shims, headers, [_row(found) for found in shims], wide=3)


def _row(found: Found) -> tuple[object, ...]:
    from shimctl.cli import render

    where = found.bundle or found.address
    return (
        *(found.namespace, found.id, found.pid or None, render.status(_status(found))),
        *(found.shim_pid or None, where),
        *(found.address, "shimctl" if found.managed else None, found.detail),
    )


def _status(found: Found) -> str:
    from shimctl.discover import Health

    if found.health is Health.UP:
        return found.status.value
    if found.exited is not None:
        status = "?" if found.exited.reason else found.exited.exit_status
        return f"exited {status}, no shim"
    return found.health.value
