"""kill: send a signal to containers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from shimctl.cli.app import Command, declare
from shimctl.cli.parameters import (
    CONTAINER,
    SIGNAL,
    Where,
    output_options,
    search_options,
)

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from shimctl.cli.output import Out
    from shimctl.discover import Found

_SHORT = re.compile(r"-(\d+|(SIG)?[A-Z][A-Z0-9]+([+]\d+)?)")


class _Kill(Command):
    """A command that takes ``-9`` and ``-HUP``, as kill(1) does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        short = [f"--signal={word[1:]}" if _SHORT.fullmatch(word) else word for word in args[:end]]
        return super().parse_args(ctx, short + args[end:])


def _complete(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem | str]:
    found = CONTAINER.shell_complete(ctx, param, incomplete)
    if ctx.params.get("ids") and not ctx.params.get("signal"):
        found += SIGNAL.shell_complete(ctx, param, incomplete)
    return [*found]


@declare("kill", example="shimctl kill -s HUP redis", cls=_Kill)
@click.argument(
    *("ids",),
    metavar="ID...",
    nargs=-1,
    required=True,
    shell_complete=_complete,
    help="The containers' ids, or beginnings of hexadecimal ids.",
)
@click.option(
    *("-s", "--signal"),
    type=SIGNAL,
    metavar="SIGNAL",
    help="The signal by name or number, also as -9 or -HUP (default: as for `shimctl stop`).",
)
@click.option("-a", "--all", "everyone", is_flag=True, help="Signal every process in it.")
@search_options
@output_options
async def command(
    ids: tuple[str, ...], signal: int | None, everyone: bool, where: Where, out: Out
) -> int:
    """Send a signal to containers.

    Without -s the last of several words may be the signal: `shimctl kill redis HUP`.
    """
    from shimctl.cli.changing import change_each
    from shimctl.cli.connected import open_found, stop_signal_of

    if signal is None and len(ids) > 1 and not _is_container(ids[-1], where):
        signal, ids = _trailing(ids)

    async def kill(found: Found) -> dict[str, object]:
        async with open_found(found) as task:
            number = signal or await stop_signal_of(found, (await task.state()).bundle)
            await task.kill(number, everyone=everyone)
        return {"signal": number}

    return await change_each(ids, where, out, kill)


def _trailing(ids: tuple[str, ...]) -> tuple[int | None, tuple[str, ...]]:
    """Return the signal that the last word is, and the other words; None if it is none.

    :raises InvalidError: the last word is in capitals or a number, but no signal.
    """
    from shim.errors import InvalidError
    from shimctl.cli import parse
    from shimctl.discover import BEGINNING

    try:
        return parse.signal_number(ids[-1]), ids[:-1]
    except ValueError as exc:
        # A mistyped signal: TERM in its place would be a surprise.
        number = ids[-1].isdecimal() and len(ids[-1]) < BEGINNING
        if ids[-1].isupper() or number:
            raise InvalidError(str(exc)) from None
        return None, ids


def _is_container(text: str, where: Where) -> bool:
    from shimctl import directories

    return any(
        entry.id == text and where.namespace in ("", entry.namespace)
        for entry in directories.containers(where.states)
    )
