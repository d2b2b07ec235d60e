"""Declare commands: the help with its example, and the options that commands share."""

from __future__ import annotations

import argparse
import shutil
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from shim.text import printable

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable, Sequence

FAILED = 125  # the exit code of a failure of shimctl or of the shim
FORMATS = ("table", "wide", "json", "yaml")


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line and exits with ``FAILED``."""

    # Set for a command whose last argument is a command line with its own options.
    # Returns True if the parsed arguments have no such command line: the options that
    # follow are then shimctl's.
    options_may_follow: Callable[[argparse.Namespace], bool] | None = None

    def parse_known_args(  # type: ignore[override]  # typeshed has overloads for one function
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        found, rest = super().parse_known_args(args, namespace)
        if args and self.options_may_follow and found.args and self.options_may_follow(found):
            at = len(args) - len(found.args) - 1
            moved = [*args[:at], *found.args, *args[at : at + 1]]
            again, rest = super().parse_known_args(moved, namespace)
            if not again.args:
                return again, rest
        return found, rest

    def error(self, message: str) -> NoReturn:
        # The message quotes the arguments; escaping keeps it on one line.
        print(f"{self.prog}: {printable(message)}; see `{self.prog} --help`", file=sys.stderr)
        raise SystemExit(FAILED)


class Help(argparse.RawDescriptionHelpFormatter):
    """A help formatter that does not re-wrap the description and the example."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_width())


@cache
def _width() -> int:
    # argparse calls this for every argument; without the cache this takes longest of all.
    return shutil.get_terminal_size().columns - 2


class Builder:
    """Declares the commands of one group; ``shimctl.cli.commands.<group>`` runs them."""

    def __init__(self, commands: argparse._SubParsersAction[Parser], group: str) -> None:
        self._commands = commands
        self._group = group

    def add_plain(self, name: str, text: str, example: str, more: str = "") -> ArgumentParser:
        """Declare a command that is not about containers; ``example`` is a command line."""
        return self._add(name, text, example, more, _printing())

    def add(self, name: str, text: str, example: str, more: str = "") -> ArgumentParser:
        """Declare a command about the containers of this host."""
        return self._add(name, text, example, more, _looking())

    def _add(
        self, name: str, text: str, example: str, more: str, common: Parser
    ) -> ArgumentParser:
        sub = self._commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.\n{more}".strip(),
            epilog=f"example:\n  {example}",
            formatter_class=Help,
            parents=[common],
            add_help=False,  # the parent declares it
        )
        sub.set_defaults(group=self._group)
        return sub

    def add_for_one(self, name: str, text: str, example: str, more: str = "") -> ArgumentParser:
        """Declare a command about one container."""
        sub = self.add(name, text, example, more)
        sub.add_argument("id", metavar="ID", help="the container's id, or a unique prefix")
        return sub


@cache
def _printing() -> Parser:
    """Return a parser with the options of every command."""
    common = Parser(formatter_class=Help)
    common.add_argument(
        *("-o", "--output"),
        choices=FORMATS,
        default="table",
        help="the output format (default: table); wide has more columns",
    )
    common.add_argument(
        "--json", action="store_const", dest="output", const="json", help="the same as -o json"
    )
    return common


@cache
def _looking() -> Parser:
    """Return a parser with the options of every command that searches for containers."""
    common = Parser(formatter_class=Help, parents=[_printing()], add_help=False)
    common.add_argument(
        "-n", "--namespace", default="", help="search only this one (default: all)"
    )
    common.add_argument(
        "--state",
        metavar="DIR",
        action="append",
        default=[],
        help="search another state directory of containerd; may be repeated",
    )
    return common
