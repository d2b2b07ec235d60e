"""state: show the state of a container."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shimctl.cli.app import declare
from shimctl.cli.parameters import Where, one_id, output_options, search_options

if TYPE_CHECKING:
    from shimctl.cli.output import Out


@declare("state", example="shimctl state redis")
@one_id
@search_options
@output_options
async def command(id_: str, where: Where, out: Out) -> None:
    """Show the state of a container."""
    from shimctl.cli import render
    from shimctl.cli.connected import state_of

    state = await state_of(await where.find(id_))
    rows = [
        ("id", state.id),
        ("status", render.status(state.status.value)),
        ("pid", state.pid or None),
        ("exit status", state.exit_status),
        ("exited at", state.exited_at),
        ("bundle", state.bundle),
        ("terminal", "yes" if state.stdio.terminal else "no"),
        ("stdin", state.stdio.stdin),
        ("stdout", state.stdio.stdout),
        ("stderr", state.stdio.stderr),
    ]
    out.show_table(state, ("FIELD", "VALUE"), rows)
