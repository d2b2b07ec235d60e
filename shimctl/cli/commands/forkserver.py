"""forkserver: show, stop or start the fork servers of this host's trio shims."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shimctl.cli.app import declare
from shimctl.cli.parameters import output_options

if TYPE_CHECKING:
    from shimctl.cli.output import Out
    from shimctl.host.forkserver import Server


@declare("forkserver", example="shimctl forkserver status")
@click.argument(
    *("action",),
    type=click.Choice(("status", "stop", "warm")),
    help="List them; stop them, their shims stay; start one for callers like this one.",
)
@click.option(
    *("--like",),
    metavar="PID",
    type=int,
    default=0,
    help="With warm: for callers in the cgroup of this process, such as containerd.",
)
@output_options
async def command(action: str, like: int, out: Out) -> None:
    """Show, stop or start the fork servers of trio shims.

    A fork server forks the shims of callers with the same build, user, namespaces and
    cgroup.  The first shim starts one too; after `warm` also that shim is fast.

    A server that is stopped accepts no starts.  It exits at once, or stays for the shims that
    it KEEPS, which have `survive = true`, and for upgraded shims to which it REPORTS the
    exits of processes; then its status is "stopped".
    """
    from shim.errors import InvalidError
    from shimctl.host import forkserver

    if like and action != "warm":
        raise InvalidError("--like goes with warm; see `shimctl forkserver --help`")
    if action == "warm":
        out.show(await forkserver.warm(like=like))
        return
    stopping = action == "stop"
    servers = await (forkserver.stop_servers() if stopping else forkserver.list_servers())
    headers = (
        *("PID", "STATUS", "SHIMS", "KEEPS", "REPORTS", "IDLE", "OURS", "SOCKET", "PROBLEM"),
    )
    out.show_table(servers, headers, [_row(server) for server in servers])


def _row(server: Server) -> tuple[object, ...]:
    from shimctl.cli import render
    from shimctl.host.forkserver import Health

    idle = None
    if server.health is Health.UP:
        idle = render.seconds(server.idle) if server.idle else "never"
    numbers = (server.daemons, server.keeps, server.reports, idle)
    return (
        *(server.pid or None, server.health.value),
        *(numbers if server.pid else (None,) * len(numbers)),
        *("yes" if server.ours else "no", server.socket, server.problem),
    )
