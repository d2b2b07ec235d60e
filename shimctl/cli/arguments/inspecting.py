"""inspect: one container and its shim, in full."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shimctl.cli.arguments.builder import Builder


def add_to(commands: Builder) -> None:
    """Declare the commands of :mod:`shimctl.cli.commands.inspecting`."""
    commands.add_for_one(
        "inspect",
        "show all facts about a container and its shim",
        "shimctl inspect -o yaml redis",
        "With -o wide it also shows the environment, mounts, limits and stdio paths.",
    )
