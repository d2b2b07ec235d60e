"""wait: wait until a container exits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shimctl.cli.app import declare
from shimctl.cli.parameters import Where, one_id, output_options, search_options

if TYPE_CHECKING:
    from shimctl.cli.output import Out


@declare("wait", example="shimctl wait redis; echo $?")
@one_id
@search_options
@output_options
async def command(id_: str, where: Where, out: Out) -> int:
    """Wait until a container exits.

    Exits with the container's exit status.
    """
    from shimctl.cli.connected import wait_for

    exited = await wait_for(await where.find(id_))
    out.show(exited)
    return exited.exit_status
