"""Checks the fork servers: without one every shim starts slowly, but works."""

from __future__ import annotations

import os
from functools import partial

from shim.errors import InvalidError
from shimctl.host import forkserver
from shimctl.host.doctor.finding import Finding, Level
from shimctl.host.forkserver import Health, Server

_AREA = "fork server"


async def check() -> list[Finding]:
    """Check every fork server; return one finding at least."""
    if os.environ.get("TRIO_SHIM_FORKSERVER") == "off":
        text = "TRIO_SHIM_FORKSERVER=off: every shim starts in some 200 ms"
        return [Finding(_AREA, "environment", Level.NOTE, text)]
    try:
        servers = await forkserver.list_servers()
    except InvalidError as exc:
        remedy = "correct TRIO_SHIM_FORKSERVER_DIR, or unset it"
        return [Finding(_AREA, "environment", Level.ADVICE, str(exc), remedy)]
    if not servers:
        text = "none runs; the first shim starts one"
        return [Finding(_AREA, "servers", Level.OK, text)]
    return [judge(server) for server in servers]


def judge(server: Server) -> Finding:
    """Judge one fork server."""
    made = partial(Finding, _AREA, server.socket)
    match server.health:
        case Health.UP:
            whose = "" if server.ours else "; for other callers than this process"
            return made(Level.OK, f"pid {server.pid}, {server.daemons} shims{whose}")
        case Health.STALE:
            return made(Level.OK, "its server has exited; the next one replaces the socket")
        case Health.SILENT:
            remedy = "end its process; the next shim starts another"
            return made(Level.ADVICE, f"{server.problem}; shims start slowly", remedy)
        case Health.UNTRUSTED:
            remedy = "correct that; `shimctl forkserver status` shows whether it helped"
            return made(Level.ADVICE, f"{server.problem}; shims start slowly", remedy)
