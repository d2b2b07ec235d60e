"""The command line as the tests take it apart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import click

from shimctl.cli.app import SECTIONS, SETTINGS, Command, app, load

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS: dict[str, Command] = {name: load(name) for names in SECTIONS.values() for name in names}


def verbs(command: click.Command) -> list[click.Command]:
    """Return the command, and the commands below it."""
    return [command, *(command.commands.values() if isinstance(command, click.Group) else ())]


def options(command: click.Command) -> Iterator[str]:
    """Yield every option of a command, with its dashes."""
    for parameter in command.get_params(click.Context(command, **SETTINGS)):
        if isinstance(parameter, click.Option):
            yield from (*parameter.opts, *parameter.secondary_opts)


def parsed(*argv: str) -> SimpleNamespace:
    """Return the parameters that click reads from a command line."""
    with click.Context(app, info_name="shimctl") as top:
        context = COMMANDS[argv[0]].make_context(argv[0], list(argv[1:]), parent=top)
    return SimpleNamespace(**context.params)
