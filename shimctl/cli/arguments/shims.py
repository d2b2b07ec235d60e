"""shutdown, version: the shims themselves, and this program."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shimctl.cli.arguments.builder import Builder


def add_to(commands: Builder) -> None:
    """Declare the commands of :mod:`shimctl.cli.commands.shims`."""
    shutdown = commands.add_for_one(
        "shutdown",
        "ask the shim of a container to leave",
        "shimctl shutdown redis",
        "A shim that has containers stays, and that is said; delete them first.",
    )
    shutdown.add_argument("--now", action="store_true", help="ask it not to wait for anything")
    version = commands.add(
        "version",
        "show the version of this program, or of the shim of a container",
        "shimctl version redis",
        "A shim is asked itself, and so is the executable it was started from.",
    )
    version.add_argument("id", metavar="ID", nargs="?", default="", help="the container's id")
