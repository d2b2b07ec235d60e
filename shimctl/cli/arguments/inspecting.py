"""inspect: one container and its shim, in full."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shimctl.cli.arguments.builder import Builder


def add_to(commands: Builder) -> None:
    """Declare the commands of :mod:`shimctl.cli.commands.inspecting`."""
    commands.add_for_one(
        "inspect",
        "show everything there is to know of a container and its shim",
        "shimctl inspect -o yaml redis",
        "With -o wide also its environment, mounts and where its output goes.",
    )
