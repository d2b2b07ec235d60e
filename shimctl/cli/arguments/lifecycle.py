"""start, kill, wait, pause, resume, delete: change or await a container's state."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shimctl.cli.arguments.builder import Builder


def add_to(commands: Builder) -> None:
    """Declare the commands of :mod:`shimctl.cli.commands.lifecycle`."""
    commands.add_for_one("start", "start a created container", "shimctl start redis")
    kill = commands.add_for_one("kill", "send a signal to a container", "shimctl kill redis HUP")
    kill.add_argument(
        "signal", metavar="SIGNAL", nargs="?", default="", help="default: the image's, or TERM"
    )
    kill.add_argument("-a", "--all", action="store_true", help="signal every process in it")
    commands.add_for_one(
        "wait",
        "wait until a container exits",
        "shimctl wait redis; echo $?",
        "Exits with the container's exit status.",
    )
    commands.add_for_one("pause", "freeze a container", "shimctl pause redis")
    commands.add_for_one("resume", "thaw a paused container", "shimctl resume redis")
    delete = commands.add_for_one(
        "delete",
        "delete an exited container",
        "shimctl delete redis",
        "Its shim exits, and the files that `shimctl run` made for it are removed.",
    )
    delete.add_argument("-f", "--force", action="store_true", help="kill it first if it runs")
