"""events: receive and print events."""

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
        "Runs until interrupted.  Trio shims also send their earlier events that were not\n"
        "acknowledged.  Shims of containerd send events to containerd: see `ctr events`.",
    )
