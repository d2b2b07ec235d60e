"""resume: thaw paused containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shimctl.cli.app import declare
from shimctl.cli.parameters import Where, output_options, search_options, several_ids

if TYPE_CHECKING:
    from shimctl.cli.output import Out
    from shimctl.discover import Found


@declare("resume", example="shimctl resume redis")
@several_ids
@search_options
@output_options
async def command(ids: tuple[str, ...], where: Where, out: Out) -> int:
    """Thaw paused containers."""
    from shimctl.cli.changing import change_each
    from shimctl.cli.connected import open_found

    async def resume(found: Found) -> dict[str, object]:
        async with open_found(found) as task:
            await task.resume()
        return {}

    return await change_each(ids, where, out, resume)
