"""completion: print the shell scripts that complete shimctl's commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shimctl.cli.app import declare
from shimctl.cli.parameters import output_options

if TYPE_CHECKING:
    from shimctl.cli.output import Out


@declare("completion", example="shimctl completion bash > /etc/bash_completion.d/shimctl")
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")), help="The shell.")
@output_options
def command(shell: str, out: Out) -> None:
    """Print the script that completes words in a shell.

    It completes commands, options and ids.  For the current shell only: source <(shimctl
    completion bash), or zsh in zsh; in fish: shimctl completion fish | source
    """
    from shimctl.cli.completion import script

    text = script(shell)
    out.show({"shell": shell, "script": text}, lambda: text.rstrip("\n"))
