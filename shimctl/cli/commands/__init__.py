"""The commands of shimctl: each finds its container, asks its shim, prints.

A module holds the commands of one group, by name in its ``COMMANDS``, and is
imported when one of them is asked for.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING

import trio

from shimctl.cli.commands.report import only, report

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Awaitable, Callable


def run(args: Namespace) -> int:
    """Run the command that was parsed; return the exit code."""
    try:
        return trio.run(command(args.group, args.command), args)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (Exception, BaseExceptionGroup) as exc:
        error = only(exc)
        if isinstance(error, BrokenPipeError):
            # Nobody reads our output any more; Python would complain again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        return report(error, args)


def command(group: str, name: str) -> Callable[[Namespace], Awaitable[int]]:
    """Return what does command ``name`` of ``group``: given the arguments, it exits so."""
    commands: dict[str, Callable[[Namespace], Awaitable[int]]]
    commands = import_module(f"{__name__}.{group}").COMMANDS
    return commands[name]
