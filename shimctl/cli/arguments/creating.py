"""create, checkpoint, restore: containers that do not run yet, and that did before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shimctl.cli.arguments.images import add_image_options
from shimctl.cli.arguments.running import add_bundle, add_stdio

if TYPE_CHECKING:
    import argparse

    from shimctl.cli.arguments.builder import Builder


def add_to(commands: Builder) -> None:
    """Declare the commands of :mod:`shimctl.cli.commands.creating`."""
    create = commands.add(
        "create",
        "create a container that does not run yet, print its id",
        "shimctl create --id redis ./bundle && shimctl start redis",
        "As `shimctl run -d`, up to the point where `shimctl start` goes on.",
    )
    add_bundle(create)
    add_stdio(create)
    add_image_options(create)
    _checkpoint(
        commands.add_for_one(
            "checkpoint",
            "write the memory of a running container to disk, and end it",
            "shimctl checkpoint redis --image-path /var/tmp/redis",
            "Its runtime does it, with criu.  `shimctl restore` goes on from there.",
        )
    )
    restore = commands.add(
        "restore",
        "go on with a container from a checkpoint, print its id",
        "shimctl restore --image-path /var/tmp/redis --id redis ./bundle",
        "The bundle is the one that was checkpointed; the container runs on without us.",
    )
    add_bundle(restore)
    add_stdio(restore)
    restore.add_argument(
        "--image-path", metavar="DIR", required=True, help="what `shimctl checkpoint` wrote"
    )
    restore.add_argument("--work-path", metavar="DIR", help="where criu leaves its log")


def _checkpoint(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--image-path", metavar="DIR", required=True, help="where to write it")
    sub.add_argument("--work-path", metavar="DIR", help="where criu leaves its log")
    sub.add_argument(
        "--parent-path",
        metavar="DIR",
        help="an earlier checkpoint, relative to the image: only the difference is written",
    )
    sub.add_argument("--leave-running", action="store_true", help="do not end the container")
    sub.add_argument("--tcp-established", action="store_true", help="allow open TCP connections")
    sub.add_argument("--ext-unix-sk", action="store_true", help="allow unix sockets to outside")
    sub.add_argument("--shell-job", action="store_true", help="allow a terminal from outside")
    sub.add_argument("--file-locks", action="store_true", help="allow locked files")
    sub.add_argument(
        "--empty-ns",
        metavar="KIND",
        action="append",
        default=[],
        help="restore this namespace empty, say network; may be repeated",
    )
    sub.add_argument(
        "--manage-cgroups-mode",
        choices=("soft", "full", "strict", "ignore"),
        default="",
        help="what of its cgroups criu restores",
    )
