"""top: what containers use, as they run."""

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
        "watch what containers use, or the processes of one",
        "shimctl top -d 500ms --sort memory",
        "On a terminal until q or Ctrl-C; c, m, p, i and n sort by cpu, memory, processes,\n"
        "input and output, and name.  Elsewhere it prints one table after the other.",
    )
    top.add_argument("id", metavar="ID", nargs="?", default="", help="show its processes instead")
    top.add_argument(
        *("-d", "--delay"),
        type=types.seconds,
        default=2.0,
        metavar="SECONDS",
        help="between two looks (default: 2)",
    )
    top.add_argument(
        *("-i", "--iterations"),
        type=types.integer(1, 1_000_000),
        default=0,
        metavar="N",
        help="look so many times (default: until interrupted)",
    )
    top.add_argument(
        "--sort", choices=SORTS, default="cpu", help="what comes first (default: cpu)"
    )
