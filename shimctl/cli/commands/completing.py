"""completion: print the shell scripts that complete shimctl's commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shimctl.cli.commands.output import show
from shimctl.cli.completion import script

if TYPE_CHECKING:
    from argparse import Namespace


async def _completion(args: Namespace) -> int:
    text = script(args.shell)
    show(args, {"shell": args.shell, "script": text}, lambda: text.rstrip("\n"))
    return 0


COMMANDS = {"completion": _completion}
