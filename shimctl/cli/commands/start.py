"""start: start created containers, and exited ones again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shimctl.cli.app import declare
from shimctl.cli.parameters import Where, output_options, search_options, several_ids

if TYPE_CHECKING:
    from shimctl.cli.output import Out


@declare("start", example="shimctl start redis")
@several_ids
@search_options
@output_options
async def command(ids: tuple[str, ...], where: Where, out: Out) -> int:
    """Start created containers, and exited ones again.

    An exited container of `shimctl run` or `create` is run again as before, detached, with
    the files that it wrote; its log is continued.  One of another manager is not: the
    error names the command of that manager.  Several are started in the order of the ids.
    """
    from shimctl.attach.session import open_signals
    from shimctl.cli.changing import change_each
    from shimctl.cli.rerunning import start_found

    async with open_signals():
        return await change_each(ids, where, out, start_found, in_turn=True)
    raise AssertionError("open_signals raises when it ends the block")
