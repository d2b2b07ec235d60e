"""forkserver, install: the fork servers and the executables of this host."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from shim.errors import InvalidError
from shim.text import printable
from shimctl.cli import render
from shimctl.cli.commands.output import show
from shimctl.host import forkserver, install

if TYPE_CHECKING:
    from argparse import Namespace


async def _forkserver(args: Namespace) -> int:
    if args.like and args.action != "warm":
        raise InvalidError("--like goes with warm; see `shimctl forkserver --help`")
    if args.action == "warm":
        show(args, await forkserver.warm(like=args.like))
        return 0
    stopping = args.action == "stop"
    servers = await (forkserver.stop_servers() if stopping else forkserver.list_servers())
    headers = ("PID", "STATUS", "SHIMS", "IDLE", "OURS", "SOCKET", "PROBLEM")
    show(args, servers, lambda: render.table(headers, [_row(server) for server in servers]))
    return 0


def _row(server: forkserver.Server) -> tuple[object, ...]:
    idle = render.seconds(server.idle) if server.idle else "never"
    return (
        *(server.pid or None, server.health.value),
        *((server.daemons, idle) if server.pid else (None, None)),
        *("yes" if server.ours else "no", server.socket, server.problem),
    )


async def _install(args: Namespace) -> int:
    if args.uninstall:
        done = install.uninstall(args.prefix, name=args.name)
    else:
        done = await install.install(args.prefix, name=args.name, native=args.native)
    if done.remark:
        print(f"shimctl: {printable(done.remark)}", file=sys.stderr)
    files = "\n".join(map(printable, done.files))
    show(args, done, (lambda: files) if files else None)
    return 0


COMMANDS = {"forkserver": _forkserver, "install": _install}
