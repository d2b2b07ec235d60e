"""completion: a script that makes a shell complete our commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shimctl.cli.arguments.builder import Builder


def add_to(commands: Builder) -> None:
    """Declare the commands of :mod:`shimctl.cli.commands.completing`."""
    completion = commands.add_plain(
        "completion",
        "print what makes a shell complete commands, options and ids",
        "shimctl completion bash > /etc/bash_completion.d/shimctl",
        "For this shell only: source <(shimctl completion bash), or zsh;\n"
        "in fish: shimctl completion fish | source",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="for which shell")
