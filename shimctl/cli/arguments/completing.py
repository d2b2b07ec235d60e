"""completion: the shell scripts that complete shimctl's commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shimctl.cli.arguments.builder import Builder


def add_to(commands: Builder) -> None:
    """Declare the commands of :mod:`shimctl.cli.commands.completing`."""
    completion = commands.add_plain(
        "completion",
        "print the script that completes commands, options and ids in a shell",
        "shimctl completion bash > /etc/bash_completion.d/shimctl",
        "For the current shell only: source <(shimctl completion bash), or zsh in zsh;\n"
        "in fish: shimctl completion fish | source",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")
