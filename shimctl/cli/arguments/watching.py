"""top: show the resource usage of running containers continuously."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shimctl.cli.arguments import types

if TYPE_CHECKING:
    from shimctl.cli.arguments.builder import Builder

SORTS = ("cpu", "memory", "pids", "io", "id")


def add_to(commands: Builder) -> None:
    """Declare the commands of :mod:`shimctl.cli.commands.watching`."""
    top = commands.add(
        "top",
        "show the resource usage of containers, or of one container's processes, continuously",
        "shimctl top -d 500ms --sort memory",
        "On a terminal q or Ctrl-C ends it; c, m, p, i and n sort by cpu, memory, processes,\n"
        "input and output, and name.  Without a terminal it prints one table after another.",
    )
    top.add_argument("id", metavar="ID", nargs="?", default="", help="show its processes instead")
    top.add_argument(
        *("-d", "--delay"),
        type=types.seconds,
        default=2.0,
        metavar="SECONDS",
        help="the time between two measurements (default: 2)",
    )
    top.add_argument(
        *("-i", "--iterations"),
        type=types.integer(1, 1_000_000),
        default=0,
        metavar="N",
        help="stop after N measurements (default: until interrupted)",
    )
    top.add_argument(
        "--sort", choices=SORTS, default="cpu", help="the column to sort by (default: cpu)"
    )
