"""rm: the same as delete, by the name that docker gives it."""

from __future__ import annotations

from shimctl.cli.app import SETTINGS, Command
from shimctl.cli.commands.delete import command as delete

command = Command(
    "rm",
    callback=delete.callback,
    params=delete.params,
    help="Delete exited containers, as `shimctl delete` does.",
    example="shimctl rm -f redis web",
    context_settings=SETTINGS,
)
