"""shutdown, version: a container's shim, and shimctl itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shimctl.cli.arguments.builder import Builder


def add_to(commands: Builder) -> None:
    """Declare the commands of :mod:`shimctl.cli.commands.shims`."""
    shutdown = commands.add_for_one(
        "shutdown",
        "ask the shim of a container to exit",
        "shimctl shutdown redis",
        "A shim that has containers does not exit, and the command fails; delete them first.",
    )
    shutdown.add_argument("--now", action="store_true", help="ask it to exit without waiting")
    version = commands.add(
        "version",
        "show the version of shimctl, or of a container's shim",
        "shimctl version redis",
        "For a shim, shows the version of the running daemon and of its executable.",
    )
    version.add_argument("id", metavar="ID", nargs="?", default="", help="the container's id")
