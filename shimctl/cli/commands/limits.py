"""update: change a container's resource limits.

Source: OCI runtime specification, config-linux.md, "Control groups".
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shim import jsontext
from shim.errors import InvalidError, NotFoundError
from shimctl.cli.commands.connected import open_task
from shimctl.cli.commands.output import show

if TYPE_CHECKING:
    from argparse import Namespace

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


async def _update(args: Namespace) -> int:
    resources = resources_of(args)
    async with open_task(args) as task:
        await task.update(resources)
    show(args, resources)
    return 0


def resources_of(args: Namespace) -> dict[str, Any]:
    """Return the ``linux.resources`` for the arguments; options override ``--resources``.

    :raises InvalidError: the arguments set no limit, or the file has no such object.
    :raises NotFoundError: there is no such file.
    """
    resources = _read(args.resources) if args.resources else {}
    for option, group, name in _PLACES:
        if (value := getattr(args, option)) is not None:
            resources.setdefault(group, {})[name] = value
    if args.cpus is not None:
        quota = {"quota": round(args.cpus * _PERIOD), "period": _PERIOD}
        resources.setdefault("cpu", {}).update(quota)
    if not resources:
        raise InvalidError("nothing to update; try --memory 512MiB, see `shimctl update --help`")
    return resources


def _read(name: str) -> dict[str, Any]:
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


COMMANDS = {"update": _update}
