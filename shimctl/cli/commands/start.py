"""start: start created containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shimctl.cli.app import declare
from shimctl.cli.parameters import Where, output_options, search_options, several_ids

if TYPE_CHECKING:
    from shimctl.cli.output import Out
    from shimctl.discover import Found


@declare("start", example="shimctl start redis")
@several_ids
@search_options
@output_options
async def command(ids: tuple[str, ...], where: Where, out: Out) -> int:
    """Start created containers.

    They are started in the order of the ids.
    """
    from shimctl.cli.changing import change_each
    from shimctl.cli.connected import open_found

    async def start(found: Found) -> dict[str, object]:
        async with open_found(found) as task:
            return {"pid": await task.start()}

    return await change_each(ids, where, out, start, in_turn=True)
