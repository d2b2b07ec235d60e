"""restart: stop containers, and run them again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shimctl.cli.app import declare
from shimctl.cli.parameters import (
    Where,
    output_options,
    search_options,
    several_ids,
    stop_options,
)

if TYPE_CHECKING:
    from shimctl.cli.output import Out


@declare("restart", example="shimctl restart -t 30 redis web")
@several_ids
@stop_options
@search_options
@output_options
async def command(
    ids: tuple[str, ...], signal: int | None, grace: float | None, where: Where, out: Out
) -> int:
    """Stop containers, and run them again.

    Each is stopped as by `shimctl stop`, and started as by `shimctl start`.  It must be a
    container of `shimctl run -d` or `create`; for one of another manager the error names
    the command of that manager.
    """
    from functools import partial

    from shimctl.attach.session import open_signals
    from shimctl.cli.changing import change_each
    from shimctl.cli.rerunning import restart_found

    change = partial(restart_found, number=signal, grace=grace)
    async with open_signals():
        return await change_each(ids, where, out, change)
    raise AssertionError("open_signals raises when it ends the block")
