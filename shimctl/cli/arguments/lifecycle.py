"""start, kill, wait, pause, resume, delete: the steps of a container's life."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shimctl.cli.arguments.builder import Builder


def add_to(commands: Builder) -> None:
    """Declare the commands of :mod:`shimctl.cli.commands.lifecycle`."""
    commands.add_for_one("start", "start a container that was created", "shimctl start redis")
    kill = commands.add_for_one("kill", "send a signal to a container", "shimctl kill redis HUP")
    kill.add_argument(
        "signal", metavar="SIGNAL", nargs="?", default="", help="default: the image's, or TERM"
    )
    kill.add_argument("-a", "--all", action="store_true", help="to every process in it")
    commands.add_for_one(
        "wait", "wait for a container to end", "shimctl wait redis; echo $?", "Exits as it did."
    )
    commands.add_for_one("pause", "freeze a container", "shimctl pause redis")
    commands.add_for_one("resume", "thaw a paused container", "shimctl resume redis")
    delete = commands.add_for_one(
        "delete",
        "delete a container that has ended",
        "shimctl delete redis",
        "Its shim goes too, and what `shimctl run` made for it.",
    )
    delete.add_argument("-f", "--force", action="store_true", help="kill it first if it runs")
