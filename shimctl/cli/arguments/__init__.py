"""What can be said to shimctl: a module for each group of commands.

A group's ``add_to`` declares its commands; the module of the same name in
:mod:`shimctl.cli.commands` does them.  Only argparse is imported here, so that
``--help`` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shim.version import VERSION
from shimctl.cli.arguments import (
    attaching,
    completing,
    creating,
    events,
    host,
    images,
    inspecting,
    lifecycle,
    limits,
    listing,
    running,
    shims,
    watching,
)
from shimctl.cli.arguments.builder import Builder, Help, Parser

if TYPE_CHECKING:
    import argparse

# In the order of ``--help``.
_GROUPS = (
    *(listing, inspecting, watching, running, attaching, creating, lifecycle, limits),
    *(images, events, shims, host, completing),
)


def parser() -> argparse.ArgumentParser:
    """Build the whole command line."""
    top = Parser(
        prog="shimctl",
        formatter_class=Help,
        description="Drive the containerd shims of this host, whoever wrote them.",
        epilog="`shimctl COMMAND --help` shows an example of each.",
    )
    top.add_argument("--version", action="version", version=f"shimctl {VERSION}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in _GROUPS:
        group.add_to(Builder(commands, group.__name__.rpartition(".")[2]))
    return top
