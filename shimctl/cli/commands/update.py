"""update: change a container's resource limits.

Source: OCI runtime specification, config-linux.md, "Control groups".
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shimctl.cli.app import declare
from shimctl.cli.parameters import (
    COUNT_LIMIT,
    CPU_SET,
    CPUS,
    FILE,
    LIMIT,
    Where,
    integer,
    one_id,
    output_options,
    search_options,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shimctl.cli.output import Out
    from shimctl.discover import Found

_PERIOD = 100_000  # us, the kernel's own default

# Each option, and the group and name of its value in linux.resources.
_PLACES = (
    ("memory", "memory", "limit"),
    ("memory_swap", "memory", "swap"),
    ("memory_reservation", "memory", "reservation"),
    ("cpu_shares", "cpu", "shares"),
    ("cpuset_cpus", "cpu", "cpus"),
    ("cpuset_mems", "cpu", "mems"),
    ("pids_limit", "pids", "limit"),
    ("blkio_weight", "blockIO", "weight"),
)


@declare("update", example="shimctl update redis --memory 512MiB --cpus 1.5")
@one_id
@click.option(
    "--memory", type=LIMIT, metavar="SIZE", help="Limit of its memory; max for no limit."
)
@click.option(
    *("--memory-swap",),
    type=LIMIT,
    metavar="SIZE",
    help="Limit of memory and swap together; max for no limit.",
)
@click.option(
    *("--memory-reservation",),
    type=LIMIT,
    metavar="SIZE",
    help="The memory it keeps when memory is scarce.",
)
@click.option("--cpus", type=CPUS, metavar="N", help="Limit of its cpu time in cpus: 0.5, 2.")
@click.option(
    *("--cpu-shares",),
    type=integer(2, 262_144),
    metavar="N",
    help="Its share when cpus are busy, 2 to 262144; 1024 is usual.",
)
@click.option("--cpuset-cpus", type=CPU_SET, metavar="LIST", help="The cpus it may run on: 0-3,7.")
@click.option("--cpuset-mems", type=CPU_SET, metavar="LIST", help="The memory nodes it may use.")
@click.option(
    *("--pids-limit",),
    type=COUNT_LIMIT,
    metavar="N",
    help="Limit of its processes and threads; max for no limit.",
)
@click.option(
    *("--blkio-weight",),
    type=integer(10, 1000),
    metavar="N",
    help="Its share when disks are busy, 10 to 1000.",
)
@click.option(
    *("--resources",),
    type=FILE,
    metavar="FILE",
    help="The linux.resources object of an OCI config, in JSON; - is stdin.",
)
@search_options
@output_options
async def command(id_: str, where: Where, out: Out, **limits: Any) -> int:
    """Change the limits of a container.

    Other limits do not change.  Sizes are bytes, or end in KiB, MiB, GiB, TiB.
    """
    from shimctl.cli.changing import change_each
    from shimctl.cli.connected import open_found

    resources = resources_of(limits)

    async def update(found: Found) -> Mapping[str, object]:
        async with open_found(found) as task:
            await task.update(resources)
        return resources

    return await change_each([id_], where, out, update)


def resources_of(limits: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``linux.resources`` for the options; they override ``--resources``.

    :raises InvalidError: the options set no limit, or the file has no such object.
    :raises NotFoundError: there is no such file.
    """
    from shim.errors import InvalidError

    resources = _read(limits["resources"]) if limits["resources"] else {}
    for option, group, name in _PLACES:
        if (value := limits[option]) is not None:
            resources.setdefault(group, {})[name] = value
    if limits["cpus"] is not None:
        quota = {"quota": round(limits["cpus"] * _PERIOD), "period": _PERIOD}
        resources.setdefault("cpu", {}).update(quota)
    if not resources:
        raise InvalidError("nothing to update; try --memory 512MiB, see `shimctl update --help`")
    return resources


def _read(name: str) -> dict[str, Any]:
    from shim import jsontext
    from shim.errors import InvalidError, NotFoundError

    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        resources = jsontext.loads(data)
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {name}; - takes JSON from stdin") from None
    except ValueError as exc:
        raise InvalidError(f"{name} is not valid JSON: {exc}") from None
    if not isinstance(resources, dict) or not all(
        isinstance(resources.get(group, {}), dict) for _, group, _ in _PLACES
    ):
        raise InvalidError(f"{name} must contain the linux.resources object of an OCI config")
    return resources
