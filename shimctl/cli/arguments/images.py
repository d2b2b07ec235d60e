"""images: the unpacked images; and the options for a container made from an image."""

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
        "Their directory is SHIMCTL_IMAGES, or /var/lib/trio-shim/images.  An image that a\n"
        "container uses is not removed.",
    )
    verbs = images.add_subparsers(
        dest="verb", metavar="VERB", title="verbs", help="`shimctl images VERB --help` shows more"
    )
    _add_output(verbs.add_parser("ls", help="list them, as without a verb"))
    pull = verbs.add_parser("prepare", help="unpack an image for later containers")
    pull.add_argument("image", metavar="IMAGE", help="as for `shimctl run`")
    pull.add_argument("--platform", default="", metavar="OS/ARCH", help="default: this machine's")
    _add_output(pull)
    remove = verbs.add_parser("rm", help="remove images, and print their digests")
    remove.add_argument(
        "images",
        metavar="IMAGE",
        nargs="*",
        help="a reference, a digest, or a unique prefix of a digest",
    )
    remove.add_argument("--unused", action="store_true", help="all images that no container uses")
    _add_output(remove)


def _add_output(sub: argparse.ArgumentParser) -> None:
    # Without defaults, which would override the options before the verb.
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
    """Declare the options of a container that is made from an image."""
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
        help="the user that it runs as, by name or number",
    )
    add("--entrypoint", metavar="PROGRAM", help="replaces the image's entrypoint; '' for none")
    add("--hostname", metavar="NAME", default="", help="default: the container's id")
    add(
        *("-v", "--volume"),
        metavar="SRC:DST[:ro]",
        action="append",
        default=[],
        help="mount a file or directory of the host at DST",
    )
    add("--memory", type=types.size, metavar="SIZE", default=0, help="limit of its memory")
    add(
        "--cpus",
        type=types.cpus,
        metavar="N",
        default=0,
        help="limit of its cpu time in cpus, such as 1.5",
    )
    add(
        "--pids-limit",
        type=types.integer(1, 1 << 22),
        metavar="N",
        default=0,
        help="limit of its processes and threads",
    )
    add("--read-only", action="store_true", help="make all but its volumes read-only")
    add(
        "--network",
        choices=("none", "host"),
        default="none",
        help="a private loopback (default), or the host's network",
    )
    add("--platform", default="", metavar="OS/ARCH", help="the platform, if the image has several")
    args = sub.add_argument(
        "args", metavar="COMMAND", nargs=argparse.REMAINDER, help="with an image: the command line"
    )
    args.required = False  # else argparse's error for a missing BUNDLE would name COMMAND too
