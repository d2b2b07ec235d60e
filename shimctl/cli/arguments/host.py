"""forkserver, install: what a host has for all its shims."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from shim import names

if TYPE_CHECKING:
    from shimctl.cli.arguments.builder import Builder


def add_to(commands: Builder) -> None:
    """Declare the commands of :mod:`shimctl.cli.commands.host`."""
    _forkserver(
        commands.add_plain(
            "forkserver",
            "show, stop or start the warm parents of this host's trio shims",
            "shimctl forkserver status",
            "Each forks the shims of one kind of caller: same build, user, namespaces, cgroup.\n"
            "The first shim leaves one behind, so `warm` only spares the first one its wait.",
        )
    )
    _install(
        commands.add_plain(
            "install",
            "put the shim where containerd finds it, with the fastest launcher there is",
            "shimctl install --prefix /usr/local",
            "The programs run this very interpreter, without site and the environment's say.\n"
            "Install again after an upgrade of Python, or of the shim.",
        )
    )


def _forkserver(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "action",
        choices=("status", "stop", "warm"),
        help="list them; end them, their shims stay; leave one for callers like us",
    )
    sub.add_argument(
        "--like",
        metavar="PID",
        type=int,
        default=0,
        help="with warm: for callers in the cgroup of this process, say containerd",
    )


def _install(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--prefix", default="/usr/local", metavar="DIR", help="default: /usr/local")
    sub.add_argument(
        "--name",
        default=names.EXECUTABLE,
        help="of the shim's executable (default: containerd-shim-trio-v2)",
    )
    sub.add_argument(
        "--native",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="build the native launcher, or do not (default: where there is a C compiler)",
    )
    sub.add_argument("--uninstall", action="store_true", help="remove what was installed")
