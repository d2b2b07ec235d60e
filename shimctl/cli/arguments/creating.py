"""create, checkpoint, restore: containers before their start, and on disk."""

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
        "create a container without starting it, and print its id",
        "shimctl create --id redis ./bundle && shimctl start redis",
        "`shimctl start` then starts it.  Together they do the same as `shimctl run -d`.",
    )
    add_bundle(create)
    add_stdio(create)
    add_image_options(create)
    _checkpoint(
        commands.add_for_one(
            "checkpoint",
            "write the memory of a running container to disk, and end it",
            "shimctl checkpoint redis --image-path /var/tmp/redis",
            "The container's runtime does this with criu.  `shimctl restore` restores it.",
        )
    )
    restore = commands.add(
        "restore",
        "restore a container from a checkpoint, and print its id",
        "shimctl restore --image-path /var/tmp/redis --id redis ./bundle",
        "BUNDLE is the bundle of the checkpointed container.  The container runs detached.",
    )
    add_bundle(restore)
    add_stdio(restore)
    restore.add_argument(
        "--image-path", metavar="DIR", required=True, help="the checkpoint's directory"
    )
    restore.add_argument("--work-path", metavar="DIR", help="the directory for criu's log")


def _checkpoint(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--image-path", metavar="DIR", required=True, help="the directory to write to"
    )
    sub.add_argument("--work-path", metavar="DIR", help="the directory for criu's log")
    sub.add_argument(
        "--parent-path",
        metavar="DIR",
        help="an earlier checkpoint, relative to the image: only the difference is written",
    )
    sub.add_argument("--leave-running", action="store_true", help="do not end the container")
    sub.add_argument("--tcp-established", action="store_true", help="allow open TCP connections")
    sub.add_argument(
        "--ext-unix-sk", action="store_true", help="allow unix sockets connected to outside"
    )
    sub.add_argument("--shell-job", action="store_true", help="allow a terminal from outside")
    sub.add_argument("--file-locks", action="store_true", help="allow locked files")
    sub.add_argument(
        "--empty-ns",
        metavar="KIND",
        action="append",
        default=[],
        help="restore this namespace empty, for example network; may be repeated",
    )
    sub.add_argument(
        "--manage-cgroups-mode",
        choices=("soft", "full", "strict", "ignore"),
        default="",
        help="criu's mode for restoring cgroups",
    )
