"""The arguments of shimctl's commands, one module for each group of commands.

A group's ``add_to`` declares its commands.  The module of the same name in
:mod:`shimctl.cli.commands` runs them.  Only argparse is imported here, so that
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

# In the order of ``shimctl --help``.
_GROUPS = (
    *(listing, inspecting, watching, running, attaching, creating, lifecycle, limits),
    *(images, events, shims, host, completing),
)


def parser() -> argparse.ArgumentParser:
    """Build the whole command line."""
    top = Parser(
        prog="shimctl",
        formatter_class=Help,
        description="Control the containerd shims of this host, of any implementation.",
        epilog="`shimctl COMMAND --help` shows the command's options and an example.",
    )
    top.add_argument("--version", action="version", version=f"shimctl {VERSION}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in _GROUPS:
        group.add_to(Builder(commands, group.__name__.rpartition(".")[2]))
    return top
