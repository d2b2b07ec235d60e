"""attach, logs: the stdio and the log of a detached container."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from shimctl.cli.arguments.builder import Builder

DETACH_KEYS = "ctrl-p,ctrl-q"  # as docker's


def add_to(commands: Builder) -> None:
    """Declare the commands of :mod:`shimctl.cli.commands.attaching`."""
    attach = commands.add_for_one(
        "attach",
        "attach to a running container's stdio",
        "shimctl attach redis",
        "Several clients can attach at once: all get the same output, and all may type.\n"
        "A terminal has the size of the client that was active last.  Ctrl-P Ctrl-Q\n"
        "detaches from a terminal, Ctrl-C without one; the container keeps running.\n"
        "Exits with the container's exit status, or with 0 after detaching.",
    )
    attach.add_argument("--no-stdin", action="store_true", help="do not forward stdin")
    add_detach_keys(attach)
    logs = commands.add_for_one(
        "logs",
        "show the output of a container",
        "shimctl logs -f --since 10m redis",
        "The container was started by `shimctl run -d`, or its output goes to a file.\n"
        "An ID with a / in it is the path of a log file, such as one below /var/log/pods.",
    )
    logs.add_argument("-f", "--follow", action="store_true", help="follow until it exits")
    logs.add_argument("--since", default="", metavar="TIME", help="10m, 1h30m, or RFC 3339")
    logs.add_argument("--tail", default="all", metavar="N", help="show only the last N lines")
    logs.add_argument("-t", "--timestamps", action="store_true", help="show each line's time")


def add_detach_keys(sub: argparse.ArgumentParser) -> None:
    """Declare ``--detach-keys``."""
    sub.add_argument(
        "--detach-keys",
        default=DETACH_KEYS,
        metavar="KEYS",
        help=f"the keys that detach, such as ctrl-],q; '' for none (default: {DETACH_KEYS})",
    )
