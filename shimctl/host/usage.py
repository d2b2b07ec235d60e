"""Computes the resource usage of containers from two samples of their counters.

Values in, values out; nothing here reads a clock, a file or a socket.  Rates
are per second, cpu is in percent of one cpu, sizes are bytes.  An unknown value is
None, for example a rate after the first sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shimctl.discover import Found
    from shimctl.values import Stats, Status


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters of one container at ``time``, in seconds of a monotonic clock."""

    time: float
    stats: Stats


@dataclass(frozen=True, slots=True)
class Usage:
    """The usage of one container.  ``problem`` is the reason if there are no figures."""

    namespace: str
    id: str
    status: Status
    pid: int
    shim_pid: int
    shim_memory: int | None = None
    cpu_percent: float | None = None
    cpu_seconds: float | None = None
    memory: int | None = None
    memory_limit: int | None = None
    memory_percent: float | None = None
    pids: int | None = None
    pids_limit: int | None = None
    io_read_rate: float | None = None
    io_written_rate: float | None = None
    io_read: int | None = None
    io_written: int | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """The usage of one process of a container; ``state`` is psutil's name of its state."""

    pid: int
    exec_id: str
    parent: int
    user: str
    state: str
    threads: int
    cpu_percent: float | None
    cpu_seconds: float
    memory: int
    command: str


def usage_of(
    found: Found,
    now: Sample,
    before: Sample | None,
    *,
    memory_total: int | None = None,
    shim_memory: int | None = None,
) -> Usage:
    """Return the usage between two samples.

    ``memory_percent`` is of the container's limit, or of ``memory_total`` if there is no
    limit or a larger one.
    """
    stats = now.stats
    most = stats.memory_limit or memory_total
    if stats.memory_limit and memory_total:
        most = min(stats.memory_limit, memory_total)
    return Usage(
        namespace=found.namespace,
        id=found.id,
        status=found.status,
        pid=found.pid,
        shim_pid=found.shim_pid,
        shim_memory=shim_memory,
        cpu_percent=_percent(_rate(now, before, lambda stats: stats.cpu)),
        cpu_seconds=stats.cpu,
        memory=stats.memory,
        memory_limit=stats.memory_limit,
        memory_percent=round(100 * stats.memory / most, 2) if most else None,
        pids=stats.pids,
        pids_limit=stats.pids_limit,
        io_read_rate=_rate(now, before, lambda stats: stats.io_read),
        io_written_rate=_rate(now, before, lambda stats: stats.io_written),
        io_read=stats.io_read,
        io_written=stats.io_written,
    )


def without_figures(found: Found, problem: str) -> Usage:
    """Return a usage without figures for ``found``, with the reason."""
    return Usage(
        found.namespace, found.id, found.status, found.pid, found.shim_pid, problem=problem
    )


def _rate(
    now: Sample, before: Sample | None, counter: Callable[[Stats], float | None]
) -> float | None:
    if before is None or now.time <= before.time:
        return None
    new, old = counter(now.stats), counter(before.stats)
    # A smaller value belongs to a new container of the same name.
    if new is None or new < (old or 0):
        return None
    return (new - (old or 0)) / (now.time - before.time)


def _percent(rate: float | None) -> float | None:
    return None if rate is None else round(100 * rate, 1)


_KEYS: dict[str, Callable[[Usage], float]] = {
    "cpu": lambda usage: usage.cpu_percent or 0,
    "memory": lambda usage: usage.memory or 0,
    "pids": lambda usage: usage.pids or 0,
    "io": lambda usage: (usage.io_read_rate or 0) + (usage.io_written_rate or 0),
}

_PROCESS_KEYS: dict[str, Callable[[ProcessUsage], float]] = {
    "cpu": lambda usage: usage.cpu_percent or 0,
    "memory": lambda usage: usage.memory,
    "pids": lambda usage: usage.threads,
}


def ordered(usages: Iterable[Usage], key: str) -> list[Usage]:
    """Return the usages sorted by ``key``: cpu, memory, pids or io, the largest first.

    With any other key they are sorted by namespace and id.
    """
    named = sorted(usages, key=lambda usage: (usage.namespace, usage.id))
    return sorted(named, key=_KEYS[key], reverse=True) if key in _KEYS else named


def ordered_processes(usages: Iterable[ProcessUsage], key: str) -> list[ProcessUsage]:
    """Return the processes sorted by ``key``; ``pids`` sorts by the number of threads.

    With any other key they are sorted by pid.
    """
    by_pid = sorted(usages, key=lambda usage: usage.pid)
    found = _PROCESS_KEYS.get(key)
    return sorted(by_pid, key=found, reverse=True) if found else by_pid
