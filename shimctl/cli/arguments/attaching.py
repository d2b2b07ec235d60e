"""attach, logs: what a container that runs without us shows."""

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
        "be at the terminal, or the pipes, of a container that runs",
        "shimctl attach redis",
        "Several can be at once: all see the same, and all may type.  A terminal has the\n"
        "size of who was active last.  Ctrl-P Ctrl-Q leaves a terminal, Ctrl-C anything\n"
        "else; the container goes on.  Exits as the container does, and 0 when left.",
    )
    attach.add_argument("--no-stdin", action="store_true", help="only watch")
    add_detach_keys(attach)
    logs = commands.add_for_one(
        "logs",
        "show what a container has written",
        "shimctl logs -f --since 10m redis",
        "Of containers that `shimctl run -d` started, or whose output goes into a file.\n"
        "An ID with a / in it is a log file, say one below /var/log/pods.",
    )
    logs.add_argument("-f", "--follow", action="store_true", help="go on until it has ended")
    logs.add_argument("--since", default="", metavar="TIME", help="10m, 1h30m, or RFC 3339")
    logs.add_argument("--tail", default="all", metavar="N", help="only the last lines")
    logs.add_argument("-t", "--timestamps", action="store_true", help="the time before each line")


def add_detach_keys(sub: argparse.ArgumentParser) -> None:
    """Add the keys that let go of a terminal."""
    sub.add_argument(
        "--detach-keys",
        default=DETACH_KEYS,
        metavar="KEYS",
        help=f"what leaves a terminal, say ctrl-],q; '' for nothing (default: {DETACH_KEYS})",
    )
