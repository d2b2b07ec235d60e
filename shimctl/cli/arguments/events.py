"""events: the receiving end of a manager."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shimctl.cli.arguments.builder import Builder


def add_to(commands: Builder) -> None:
    """Declare the commands of :mod:`shimctl.cli.commands.events`."""
    commands.add(
        "events",
        "print the events of containers that `shimctl run` started",
        "shimctl events --json | tee events.log",
        "Runs until interrupted.  Shims that keep their events send those from before, too.\n"
        "The shims of containerd send their events to containerd: see `ctr events`.",
    )
