"""The command line: ``minid -c FILE`` runs the daemon; with a verb it sends it a request."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from minid import control, daemon
from minid.config import STATE, load_state
from minid.failures import EXPECTED, first_in, log_line, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

_EPILOG = """\
examples:
  minid -c /etc/minid.yaml              run the containers in the file
  minid -c /etc/minid.yaml ps           show them
  minid -c /etc/minid.yaml restart web  restart one
On SIGHUP the daemon reads the file again.  On SIGTERM it exits; the containers keep running.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run minid; return the exit status: 0, 1 for a failure, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(
        prog="minid",
        description="A small container manager.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-c", "--config", metavar="FILE", type=Path, help="the containers, in YAML"
    )
    parser.add_argument("verb", nargs="?", choices=control.VERBS, metavar="ps|up|down|restart")
    parser.add_argument("name", nargs="?", default="", help="one container (default: all)")
    options = parser.parse_args(argv)
    if options.verb is None and options.config is None:
        parser.error("give -c FILE to run the daemon, or ps, up, down or restart")
    status = 0
    try:
        if options.verb is None:
            trio.run(daemon.run, options.config, strict_exception_groups=True)
        else:
            reply = trio.run(
                control.request, socket_for(options.config), options.verb, options.name
            )
            sys.stdout.write(table(reply["containers"]))
            if options.verb in ("up", "restart"):
                status = _report_failures(reply["containers"])
    except* EXPECTED as group:
        log_line(str(first_in(group)))
        status = 1
    except* KeyboardInterrupt:
        status = 130
    return status


def _report_failures(containers: Sequence[dict[str, Any]]) -> int:
    """Write a line for each container that could not be started; return the exit status."""
    failed = [
        one
        for one in containers
        if one["status"] in ("failed", "waiting") and one["code"] is None and one["reason"]
    ]
    for one in failed:
        log_line(f"{one['name']}: cannot start: {one['reason']}")
    return 1 if failed else 0


def socket_for(file: Path | None) -> Path:
    """Return the path of the control socket of the minid that runs ``file``."""
    return (load_state(file) if file else STATE) / "control.sock"


def table(containers: Sequence[dict[str, Any]]) -> str:
    """Return the output of ``ps``."""
    rows: list[tuple[str, ...]] = [
        ("NAME", "STATUS", "GENERATION", "PID", "RESTARTS", "LAST EXIT", "PROBLEM")
    ]
    for one in containers:
        last = one["reason"] if one["code"] is None else str(one["code"])
        if one["code"] is not None and one["reason"]:
            last = f"{one['code']} ({one['reason']})"
        fields = (
            one["name"],
            one["status"],
            one["generation"],
            one["pid"] or "-",
            one["restarts"],
        )
        rows.append(tuple(map(printable, (*map(str, fields), last or "-", one["problem"]))))
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "".join(f"{line}\n" for line in lines)
