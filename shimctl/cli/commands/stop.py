"""stop: stop containers."""

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


@declare("stop", example="shimctl stop -t 30 redis web")
@several_ids
@stop_options
@search_options
@output_options
async def command(
    ids: tuple[str, ...], signal: int | None, grace: float | None, where: Where, out: Out
) -> int:
    """Stop containers.

    Each gets a signal, and SIGKILL if it still runs later.  A paused one is resumed.  One
    that has exited is left as it is, which is a success.  `shimctl rm` deletes it; its
    manager may start it again.

    The container's own signal is that of its image, or of `docker run --stop-signal`: from
    the bundle's annotation, Docker's file about the container, or containerd.
    """
    from functools import partial

    from shimctl.cli.changing import change_each
    from shimctl.cli.connected import stop_found

    return await change_each(ids, where, out, partial(stop_found, number=signal, grace=grace))
