"""update: change a container's resource limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shimctl.cli.arguments import types

if TYPE_CHECKING:
    from shimctl.cli.arguments.builder import Builder


def add_to(commands: Builder) -> None:
    """Declare the commands of :mod:`shimctl.cli.commands.limits`."""
    update = commands.add_for_one(
        "update",
        "change the limits of a container",
        "shimctl update redis --memory 512MiB --cpus 1.5",
        "Other limits do not change.  Sizes are bytes, or end in KiB, MiB, GiB, TiB.",
    )
    for name, text in (
        ("--memory", "limit of its memory; max for no limit"),
        ("--memory-swap", "limit of memory and swap together; max for no limit"),
        ("--memory-reservation", "the memory it keeps when memory is scarce"),
    ):
        update.add_argument(name, type=types.limit, metavar="SIZE", help=text)
    update.add_argument(
        "--cpus", type=types.cpus, metavar="N", help="limit of its cpu time in cpus: 0.5, 2"
    )
    update.add_argument(
        "--cpu-shares",
        type=types.integer(2, 262_144),
        metavar="N",
        help="its share when cpus are busy, 2 to 262144; 1024 is usual",
    )
    update.add_argument(
        "--cpuset-cpus", type=types.cpu_set, metavar="LIST", help="the cpus it may run on: 0-3,7"
    )
    update.add_argument(
        "--cpuset-mems", type=types.cpu_set, metavar="LIST", help="the memory nodes it may use"
    )
    update.add_argument(
        "--pids-limit",
        type=types.count_limit,
        metavar="N",
        help="limit of its processes and threads; max for no limit",
    )
    update.add_argument(
        "--blkio-weight",
        type=types.integer(10, 1000),
        metavar="N",
        help="its share when disks are busy, 10 to 1000",
    )
    update.add_argument(
        "--resources",
        metavar="FILE",
        help="the linux.resources object of an OCI config, in JSON; - is stdin",
    )
