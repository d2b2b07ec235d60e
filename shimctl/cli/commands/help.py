"""help: show the commands, or the help of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shimctl.cli.app import SETTINGS, declare

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def _complete(
    ctx: click.Context, _: click.Parameter, incomplete: str
) -> list[CompletionItem | str]:
    words = ctx.params.get("words") or ()
    top = _resolve(ctx.find_root(), words)
    return (
        []
        if not isinstance(top.command, click.Group)
        else [*click.Group.shell_complete(top.command, top, incomplete)]
    )


@declare("help", example="shimctl help run")
@click.argument(
    "words", metavar="[COMMAND...]", nargs=-1, shell_complete=_complete, help="The command."
)
@click.pass_context
def command(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Show the list of commands, or the help of one."""
    print(_resolve(ctx.find_root(), words).get_help())


def _resolve(context: click.Context, words: tuple[str, ...]) -> click.Context:
    """Return the context of the command that ``words`` name, below that of ``context``.

    :raises click.UsageError: there is no such command.
    """
    for word in words:
        group = context.command
        if not isinstance(group, click.Group):
            raise click.UsageError(f"{group.name} has no command {word!r}", context)
        name, found, _ = group.resolve_command(context, [word])
        if found is None:
            break
        context = click.Context(found, info_name=name, parent=context, **SETTINGS)
    return context
