"""forkserver, install: the fork servers and the executables of this host."""

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
            "show, stop or start the fork servers of this host's trio shims",
            "shimctl forkserver status",
            "A fork server forks the shims of callers with the same build, user, namespaces\n"
            "and cgroup.  The first shim starts one too; after `warm` also that shim is fast.",
        )
    )
    _install(
        commands.add_plain(
            "install",
            "install the shim where containerd finds it, with the fastest available launcher",
            "shimctl install --prefix /usr/local",
            "The installed executables run this interpreter with -I -S.\n"
            "Install again after an upgrade of Python or of the shim.",
        )
    )


def _forkserver(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "action",
        choices=("status", "stop", "warm"),
        help="list them; stop them, their shims stay; start one for callers like this one",
    )
    sub.add_argument(
        "--like",
        metavar="PID",
        type=int,
        default=0,
        help="with warm: for callers in the cgroup of this process, such as containerd",
    )


def _install(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--prefix", default="/usr/local", metavar="DIR", help="default: /usr/local")
    sub.add_argument(
        "--name",
        default=names.EXECUTABLE,
        help="the name of the shim's executable (default: containerd-shim-trio-v2)",
    )
    sub.add_argument(
        "--native",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="build the native launcher, or do not (default: if there is a C compiler)",
    )
    sub.add_argument("--uninstall", action="store_true", help="remove the installed files")
