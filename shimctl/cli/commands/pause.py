"""pause: freeze containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shimctl.cli.app import declare
from shimctl.cli.parameters import Where, output_options, search_options, several_ids

if TYPE_CHECKING:
    from shimctl.cli.output import Out
    from shimctl.discover import Found


@declare("pause", example="shimctl pause redis")
@several_ids
@search_options
@output_options
async def command(ids: tuple[str, ...], where: Where, out: Out) -> int:
    """Freeze containers."""
    from shimctl.cli.changing import change_each
    from shimctl.cli.connected import open_found

    async def pause(found: Found) -> dict[str, object]:
        async with open_found(found) as task:
            await task.pause()
        return {}

    return await change_each(ids, where, out, pause)
