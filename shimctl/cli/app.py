"""Imports the module of a command when it is named, and defines the classes of commands.

A module of :mod:`shimctl.cli.commands` has one command, named as the module, and
declares it with :func:`declare`.  Such a module imports only click and light modules of
this package: its functions import trio and protobuf when they run.
"""

from __future__ import annotations

import inspect
from contextlib import closing
from functools import partial
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from click.shell_completion import CompletionItem

    C = TypeVar("C", bound="Command")

# The commands in the order of ``shimctl --help``, by the section that lists them.
SECTIONS = {
    "Containers": (
        *(
            "run",
            "create",
            "start",
            "stop",
            "restart",
            "kill",
            "wait",
            "pause",
            "resume",
            "update",
        ),
        *("delete", "rm", "checkpoint", "restore", "cp"),
    ),
    "Listing": ("ps", "inspect", "state", "stats", "top"),
    "Output": ("attach", "logs", "events"),
    "Processes": ("exec", "pids"),
    "Images": ("images",),
    "Shims": ("version", "upgrade", "shutdown"),
    "Host": ("doctor", "metrics", "install", "forkserver", "prune"),
    "Shell": ("completion", "help"),
}
_UNLIMITED = 1000  # columns, for a text that is not cut
SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Command(click.Command):
    """A command whose function may be async and returns the exit code; None is 0.

    ``example`` is a command line.  The function's docstring is the help.
    """

    def __init__(self, *args: Any, example: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example

    def invoke(self, ctx: click.Context) -> int:
        """Run the command, report its failure, and return the exit code."""
        return self._reporting(ctx, super().invoke)

    def _reporting(self, ctx: click.Context, run: Callable[[click.Context], Any]) -> int:
        try:
            code = run(ctx)
            if inspect.iscoroutine(code):
                # An interrupt before the run would leave it unfinished, with a warning.
                with closing(code) as waiting:
                    import trio

                    code = trio.run(lambda: waiting)
        except (click.ClickException, click.exceptions.Exit, KeyboardInterrupt):
            raise
        except (Exception, BaseExceptionGroup) as exc:
            from shimctl.cli.report import report

            return report(exc, ctx.info_name or "", container_of(ctx))
        return code or 0

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example."""
        if self.example:
            with formatter.section("Example"):
                formatter.write(f"{'':{formatter.current_indent}}{self.example}\n")


class Group(Command, click.Group):
    """A command with commands, which report their own failures."""

    command_class = Command

    def invoke(self, ctx: click.Context) -> int:
        return self._reporting(ctx, partial(click.Group.invoke, self))


class App(click.Group):
    """The top command, which imports the module of the command that is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in SECTIONS.values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        return load(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = None, self.get_command(ctx, args[0]), args[1:]
        if command is not None:
            name = args[0]
        elif not ctx.resilient_parsing:
            raise click.NoSuchCommand(args[0], possibilities=self.list_commands(ctx), ctx=ctx)
        return name, command, rest

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [
            CompletionItem(name, help=load(name).get_short_help_str(limit=_UNLIMITED))
            for name in self.list_commands(ctx)
            if name.startswith(incomplete)
        ] + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands in their sections."""
        longest = max(map(len, self.list_commands(ctx)))
        for section, names in SECTIONS.items():
            with formatter.section(section):
                width = formatter.width - longest - 6
                rows = [
                    (name.ljust(longest), load(name).get_short_help_str(width)) for name in names
                ]
                formatter.write_dl(rows)


def load(name: str) -> Command:
    """Import the module of a command, and return the command."""
    command = import_module(f"shimctl.cli.commands.{name}").command
    assert isinstance(command, Command)
    return command


def declare(
    name: str,
    *,
    example: str,
    cls: type[C] = Command,  # type: ignore[assignment]  # a default of a type variable
    settings: Mapping[str, Any] = MappingProxyType({}),
    **attributes: Any,
) -> Callable[[Callable[..., Any]], C]:
    """Return a decorator that makes a function the command ``name``.

    Its docstring is the help: the first sentence is the text in the list of commands.
    ``settings`` are those of click's contexts, ``attributes`` those of its commands.
    """
    return click.command(
        name, cls=cls, example=example, context_settings={**SETTINGS, **settings}, **attributes
    )


def container_of(ctx: click.Context) -> str:
    """Return the id on the command line, or an empty string if there is none, or several."""
    ids: Sequence[str] | str = ctx.params.get("ids") or ctx.params.get("id_") or ""
    if isinstance(ids, str):
        return ids
    return ids[0] if len(ids) == 1 else ""


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from shim.version import VERSION

        print(f"shimctl {VERSION}")
        ctx.exit()


@click.command(
    cls=App, context_settings=SETTINGS, epilog="`shimctl help COMMAND` shows more of a command."
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def app() -> None:
    """Control the containerd shims of this host, of any implementation."""
