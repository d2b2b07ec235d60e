"""Checks the fork servers, and the shims that they have given up.

Without a server every shim starts slowly, but works.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from functools import partial

from shim import names
from shim.errors import InvalidError
from shim.linux.files import read_tail
from shim.start import identity
from shim.start.launcher import OFF
from shim.text import explain
from shimctl.host import forkserver
from shimctl.host.doctor.finding import Finding, Level
from shimctl.host.forkserver import Health, Server

_AREA = "fork server"
# Seconds for which a shim that was given up is a finding, bytes of their file to read, and
# the most findings.
_RECENT = 86_400
_LONGEST = 1 << 16
_MOST = 10


async def check() -> list[Finding]:
    """Check every fork server; return one finding at least."""
    setting = os.environ.get("TRIO_SHIM_FORKSERVER", "")
    if setting in OFF:
        text = f"TRIO_SHIM_FORKSERVER={setting}: every shim starts in some 200 ms"
        return [Finding(_AREA, "environment", Level.NOTE, text)]
    try:
        servers = await forkserver.list_servers()
    except InvalidError as exc:
        remedy = "correct TRIO_SHIM_FORKSERVER_DIR, or unset it"
        return [Finding(_AREA, "environment", Level.ADVICE, str(exc), remedy)]
    except PermissionError as exc:
        remedy = "try again as the user of the shims, which is root"
        return [Finding(_AREA, "servers", Level.NOTE, explain(exc), remedy)]
    lost = given_up(identity.directory(), time.time())
    if not servers:
        text = "none runs; the first shim starts one"
        return [Finding(_AREA, "servers", Level.OK, text), *lost]
    return [*(judge(server) for server in servers), *lost]


def given_up(directory: str, now: float) -> list[Finding]:
    """Return a finding for each shim that a fork server gave up in the day before ``now``.

    ``directory`` is that of the servers' sockets.  Lines that are no record are skipped.
    """
    path = f"{directory}/{names.GIVEN_UP}"
    found = []
    with suppress(OSError):
        for line in read_tail(path, _LONGEST).split(b"\n"):
            try:
                record = json.loads(line)
                age = now - float(record["time"])
                subject = f"{record['namespace']}/{record['id']}"
                reason = str(record["reason"])
            except (ValueError, KeyError, TypeError):
                continue
            if 0 <= age < _RECENT:
                text = f"its shim was given up {int(age // 60)} minutes ago: {reason}"
                remedy = f"read its shim's log for the cause, then remove {path}"
                found.append(Finding(_AREA, subject, Level.ADVICE, text, remedy))
    return found[-_MOST:]


def judge(server: Server) -> Finding:
    """Judge one fork server."""
    made = partial(Finding, _AREA, server.socket)
    match server.health:
        case Health.UP:
            whose = "" if server.ours else "; for other callers than this process"
            return made(Level.OK, f"pid {server.pid}, {server.daemons} shims{whose}")
        case Health.STOPPED | Health.EXITED:
            return made(Level.OK, f"pid {server.pid}: {server.problem or 'it has exited'}")
        case Health.STALE:
            return made(Level.OK, "its server has exited; the next one replaces the socket")
        case Health.SILENT:
            text = f"{server.problem}; shims start slowly"
            return made(Level.ADVICE, text, forkserver.REMEDY)
        case Health.UNTRUSTED:
            remedy = "correct that; `shimctl forkserver status` shows whether it helped"
            return made(Level.ADVICE, f"{server.problem}; shims start slowly", remedy)
