"""ps, state, pids, stats: list containers, and show their state and usage."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shimctl.cli.arguments.builder import Builder


def add_to(commands: Builder) -> None:
    """Declare the commands of :mod:`shimctl.cli.commands.listing`."""
    commands.add("ps", "list shims and their containers", "shimctl ps --json")
    commands.add_for_one("state", "show the state of a container", "shimctl state redis")
    commands.add_for_one("pids", "list the processes of a container", "shimctl pids redis")
    stats = commands.add("stats", "show the resource usage of containers", "shimctl stats redis")
    stats.add_argument("id", metavar="ID", nargs="*", help="default: every container")
