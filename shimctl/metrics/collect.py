"""Measures every container and every shim of this host once.

All shims are queried at the same time, and each within a time limit.  So shims that do not
answer delay the result by the longest limit only.  Such a shim is a result, too.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import trio

from shim import names
from shim.api.task_pb2 import StatsRequest
from shim.errors import ShimError
from shimctl.client import connect
from shimctl.discover import Found, Health, list_shims, started_for
from shimctl.listing.collect import rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from google.protobuf.any_pb2 import Any as AnyMessage

    from shimctl.client import Shim
    from shimctl.listing.origin import Origin
    from shimctl.values import Stats

ANSWER = 1.0  # s for the answers of a shim without containers
EACH = 0.01  # s more for each container
AT_ONCE = 16  # containers of one shim that are queried at the same time


@dataclass(frozen=True, slots=True)
class Counters:
    """The counters of one daemon of this project; times are in nanoseconds."""

    events_waiting: int = 0
    spooled: int = 0
    dropped: int = 0
    execs: int = 0
    exec_time: int = 0
    exits: int = 0
    exit_time: int = 0


@dataclass(frozen=True, slots=True)
class Container:
    """A container; ``stats`` is None if its shim returned none."""

    found: Found
    origin: Origin
    stats: Stats | None = None


@dataclass(frozen=True, slots=True)
class ShimFigures:
    """A shim; ``found`` is one of its containers.  A figure of None is unknown.

    ``name`` is the id of the container for which it was started.
    """

    found: Found
    containers: int
    up: bool = False
    version: str = ""
    memory: int | None = None  # bytes, shared memory divided by its users
    fds: int | None = None
    counters: Counters | None = None
    name: str = ""


@dataclass(slots=True)
class Snapshot:
    """The results of one collection."""

    containers: list[Container] = field(default_factory=list)
    shims: list[ShimFigures] = field(default_factory=list)


async def collect(
    *, namespace: str = "", states: Sequence[str | Path] = (), timeout: float = ANSWER
) -> Snapshot:
    """Measure the containers of ``namespace``, by default of all, and their shims.

    ``states`` are further state directories of containerd, ``timeout`` is in seconds.  A shim
    has ``EACH`` seconds more for each of its containers.
    """
    shims = [
        found
        for found in await list_shims(states=states, timeout=timeout)
        if found.health is not Health.FOREIGN and namespace in ("", found.namespace)
    ]
    served: dict[str | int, list[Found]] = {}
    for found in shims:
        if found.address and (found.health is not Health.DEAD or found.exited is None):
            # A shared daemon has several addresses.
            served.setdefault(found.shim_pid or found.address, []).append(found)
    stats: dict[Found, Stats] = {}
    snapshot = Snapshot()

    async def measure(containers: list[Found]) -> None:
        snapshot.shims.append(await _measure(containers, stats, timeout))

    async with trio.open_nursery() as nursery:
        for containers in served.values():
            nursery.start_soon(measure, containers)
    snapshot.shims.sort(key=lambda one: (one.found.namespace, one.found.id))
    for row in rows_of(found for found in shims if found.id):
        snapshot.containers.append(Container(row.found, row.origin, stats.get(row.found)))
    return snapshot


async def _measure(
    containers: list[Found], stats: dict[Found, Stats], timeout: float
) -> ShimFigures:
    found = containers[0]
    up, version, counters = False, "", None
    if found.health is Health.UP:
        limit = timeout + EACH * len(containers)
        with trio.move_on_after(limit), suppress(ShimError):
            async with connect(found.address, namespace=found.namespace) as shim:
                who = await shim.connect(found.id, timeout=timeout)
                up, version = True, who.version
                counters = await _counters(shim, timeout)
                await _stats(shim, containers, stats, limit)
    pid = found.shim_pid
    memory, fds = (pss_of(pid), fds_of(pid)) if pid else (None, None)
    name = started_for(pid) if pid else ""
    count = sum(bool(one.id) for one in containers)  # a socket alone has no id
    return ShimFigures(found, count, up, version, memory, fds, counters, name)


async def _stats(
    shim: Shim, containers: list[Found], stats: dict[Found, Stats], limit: float
) -> None:
    """Query ``containers``, several at the same time; each answer is in ``stats`` at once."""
    free = trio.CapacityLimiter(AT_ONCE)

    async def query(one: Found) -> None:
        async with free:
            with suppress(ShimError):  # no cgroup, or no figures of this runtime
                stats[one] = await shim.task(one.id).stats(timeout=limit)

    async with trio.open_nursery() as nursery:
        for one in containers:
            nursery.start_soon(query, one)


async def _counters(shim: Shim, timeout: float) -> Counters | None:
    """Read the counters of the daemon; None for a shim of another kind or version."""
    with suppress(ShimError):
        return parsed((await shim.call("Stats", StatsRequest(), timeout)).stats)
    return None


def parsed(message: AnyMessage) -> Counters | None:
    """Return the counters in a reply to Stats; unknown and malformed ones are left out."""
    if message.type_url != names.COUNTERS:
        return None
    try:
        values = json.loads(message.value)
    except (ValueError, RecursionError):
        return None
    known = {one.name for one in fields(Counters)}
    given = values.items() if isinstance(values, dict) else ()
    return Counters(**{name: n for name, n in given if name in known and type(n) is int})


def pss_of(pid: int) -> int | None:
    """Return a process's memory in bytes, with shared memory divided by its users.

    None if the kernel does not report it.  Source: Linux Documentation/ABI,
    procfs-smaps_rollup.
    """
    with suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return None


def fds_of(pid: int) -> int | None:
    """Return the number of open fds of a process, None if it is unknown."""
    with suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - only their number
    return None
