"""The commands of shimctl: each finds its container, calls its shim, prints the result.

A module has the commands of one group; its ``COMMANDS`` maps their names to functions.
It is imported when one of its commands runs.
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
    """Run the parsed command; return the exit code."""
    try:
        return trio.run(command(args.group, args.command), args)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (Exception, BaseExceptionGroup) as exc:
        error = only(exc)
        if isinstance(error, BrokenPipeError):
            # The reader closed our output.  Without this, Python's flush at exit fails again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        return report(error, args)


def command(group: str, name: str) -> Callable[[Namespace], Awaitable[int]]:
    """Return the function for command ``name`` of ``group``; it returns the exit code."""
    commands: dict[str, Callable[[Namespace], Awaitable[int]]]
    commands = import_module(f"{__name__}.{group}").COMMANDS
    return commands[name]
