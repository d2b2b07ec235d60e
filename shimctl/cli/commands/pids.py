"""pids: list the processes of a container."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shimctl.cli.app import declare
from shimctl.cli.parameters import Where, one_id, output_options, search_options

if TYPE_CHECKING:
    from shimctl.cli.output import Out
    from shimctl.host.usage import ProcessUsage


@declare("pids", example="shimctl pids redis")
@one_id
@search_options
@output_options
async def command(id_: str, where: Where, out: Out) -> None:
    """List the processes of a container."""
    from shimctl.cli.connected import open_found

    async with open_found(await where.find(id_)) as task:
        pids = await task.pids()
        seen: dict[int, ProcessUsage] = {}
        if out.wide:
            from shimctl.host.processes import ProcessSampler

            init = (await task.state()).pid
            seen = {one.pid: one for one in ProcessSampler().sample(pids, init)}
    rows = [(one.pid, one.exec_id, *_process(seen.get(one.pid))) for one in pids]
    headers = ("PID", "EXEC", "PARENT", "USER", "STATE", "MEMORY", "COMMAND")
    out.show_table(pids, headers, rows, wide=5)


def _process(one: ProcessUsage | None) -> tuple[object, ...]:
    from shimctl.cli import render

    if one is None:
        return (None,) * 5
    return (one.parent, one.user, one.state, render.size(one.memory), one.command)
