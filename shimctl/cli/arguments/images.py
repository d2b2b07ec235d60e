"""images: what `shimctl run` has unpacked; and how a container is made from an image."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from shimctl.cli.arguments import types
from shimctl.cli.arguments.builder import FORMATS, Parser

if TYPE_CHECKING:
    from shimctl.cli.arguments.builder import Builder


def add_to(commands: Builder) -> None:
    """Declare the command of :mod:`shimctl.cli.commands.images`."""
    images = commands.add_plain(
        "images",
        "list, unpack or remove the images that containers are made from",
        "shimctl images rm --unused",
        "They lie in SHIMCTL_IMAGES, or /var/lib/trio-shim/images.  An image that a container\n"
        "uses is not removed.",
    )
    verbs = images.add_subparsers(
        dest="verb", metavar="VERB", title="verbs", help="`shimctl images VERB --help` says more"
    )
    _add_output(verbs.add_parser("ls", help="list them, as without a verb"))
    pull = verbs.add_parser("prepare", help="unpack an image, for the containers to come")
    pull.add_argument("image", metavar="IMAGE", help="as for `shimctl run`")
    pull.add_argument("--platform", default="", metavar="OS/ARCH", help="default: this machine's")
    _add_output(pull)
    remove = verbs.add_parser("rm", help="remove some, and print their digests")
    remove.add_argument(
        "images",
        metavar="IMAGE",
        nargs="*",
        help="a reference, a digest, or enough of a digest's beginning",
    )
    remove.add_argument("--unused", action="store_true", help="all that no container uses")
    _add_output(remove)


def _add_output(sub: argparse.ArgumentParser) -> None:
    # Without defaults, which would hide what was said before the verb.
    sub.add_argument("-o", "--output", choices=FORMATS, default=argparse.SUPPRESS)
    sub.add_argument(
        *("--json",),
        action="store_const",
        dest="output",
        const="json",
        default=argparse.SUPPRESS,
        help="the same as -o json",
    )


def _is_bundle(found: argparse.Namespace) -> bool:
    from shimctl.images.reference import is_reference  # late, as everything but argparse

    return not is_reference(found.bundle)


def add_image_options(sub: argparse.ArgumentParser) -> None:
    """Add what can be said about a container that is made from an image."""
    if isinstance(sub, Parser):
        sub.options_may_follow = _is_bundle
    group = sub.add_argument_group(
        "an image instead of BUNDLE",
        "oci:LAYOUT:TAG, oci-archive:FILE[:NAME] or docker-archive:FILE[:NAME]",
    )
    add = group.add_argument
    add("-e", "--env", metavar="NAME=VALUE", action="append", default=[], help="set a variable")
    add("-w", "--workdir", metavar="DIR", default="", help="its working directory")
    add(
        "-u",
        "--user",
        metavar="USER[:GROUP]",
        default="",
        help="who it runs as, by name or number",
    )
    add("--entrypoint", metavar="PROGRAM", help="instead of the image's; '' for none")
    add("--hostname", metavar="NAME", default="", help="default: the container's id")
    add(
        *("-v", "--volume"),
        metavar="SRC:DST[:ro]",
        action="append",
        default=[],
        help="show a file or directory of the host at DST",
    )
    add("--memory", type=types.size, metavar="SIZE", default=0, help="the most it may use")
    add("--cpus", type=types.cpus, metavar="N", default=0, help="the most it may use, say 1.5")
    add(
        "--pids-limit",
        type=types.integer(1, 1 << 22),
        metavar="N",
        default=0,
        help="the most processes and threads it may have",
    )
    add("--read-only", action="store_true", help="it writes nowhere but in volumes")
    add(
        "--network",
        choices=("none", "host"),
        default="none",
        help="a loopback of its own (default), or the host's network",
    )
    add("--platform", default="", metavar="OS/ARCH", help="of an image for several machines")
    args = sub.add_argument(
        "args", metavar="COMMAND", nargs=argparse.REMAINDER, help="with an image: what to run"
    )
    args.required = False  # else argparse, told of no BUNDLE, would ask for this as well
