"""run, exec: processes attached to shimctl's stdin, stdout and stderr."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from shimctl.cli.arguments import types
from shimctl.cli.arguments.attaching import add_detach_keys
from shimctl.cli.arguments.images import add_image_options

if TYPE_CHECKING:
    from shimctl.cli.arguments.builder import Builder


def add_to(commands: Builder) -> None:
    """Declare the commands of :mod:`shimctl.cli.commands.running`."""
    _run(
        commands.add(
            "run",
            "run an image, or an OCI bundle, without a container manager",
            "shimctl run -t oci:./layout:latest sh",
            "Exits with the container's exit status; the third Ctrl-C kills the container.\n"
            "The bundle is not changed.  Ctrl-P Ctrl-Q detaches from a terminal;\n"
            "`shimctl attach` attaches again.  `shimctl logs` shows a detached container's\n"
            "output.",
        )
    )
    _exec(
        commands.add_for_one(
            "exec",
            "run a command in a container",
            "shimctl exec -it redis sh",
            "Exits with the command's exit status.",
        )
    )


def add_bundle(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of every command that creates a container."""
    sub.add_argument("bundle", metavar="BUNDLE", help="a directory with a config.json")
    sub.add_argument("--id", default="", help="the container's id (default: generated)")
    sub.add_argument("--runtime", default="", help="name or path (default: io.containerd.trio.v2)")
    sub.add_argument(
        "--binary", default="", metavar="FILE", help="the OCI runtime, instead of runc"
    )
    sub.add_argument("--debug", action="store_true", help="print the shim's log to stderr")


def _run(sub: argparse.ArgumentParser) -> None:
    add_bundle(sub)
    sub.add_argument(
        "-d", "--detach", action="store_true", help="run it in the background, print its id"
    )
    add_stdio(sub)
    add_detach_keys(sub)
    sub.add_argument("--events", action="store_true", help="print its events to stderr, as JSON")
    add_image_options(sub)


def add_stdio(sub: argparse.ArgumentParser) -> None:
    """Declare the options for the stdio of a detached container."""
    sub.add_argument(
        "-i", "--interactive", action="store_true", help="detached: a stdin for attached clients"
    )
    sub.add_argument(
        "-t",
        "--tty",
        action="store_true",
        help="a terminal; without -d also if the bundle has one",
    )
    sub.add_argument("--log", metavar="FILE", help="detached: write its raw output to this file")
    sub.add_argument(
        "--log-limit",
        type=types.size,
        default=None,
        metavar="SIZE",
        help="detached: size of each of the two files for `shimctl logs` (default: 10MiB)",
    )
    sub.add_argument(
        "--output-policy",
        choices=("block", "spool", "drop"),
        default="",
        help="handling of output while no client is attached, instead of a log",
    )


def _exec(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("-i", "--interactive", action="store_true", help="forward stdin to it")
    sub.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    sub.add_argument("--cwd", default="", metavar="DIR", help="its working directory")
    sub.add_argument("--user", default="", metavar="UID[:GID]", help="the user that it runs as")
    sub.add_argument(
        "-e",
        "--env",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="set a variable; may be repeated",
    )
    sub.add_argument("args", metavar="COMMAND", nargs=argparse.REMAINDER, help="the command line")
