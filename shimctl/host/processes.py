"""The resource usage of a container's processes, from the host's /proc.

A shim may report pids that are not the host's: a sandbox with its own kernel has its
own pids.  So a process of the host is used only if it is in the container's cgroups
or is a descendant of its init process.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil

from shim.linux import membership
from shimctl.host.usage import ProcessUsage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shimctl.values import Pid


def cgroups_of(pid: int) -> dict[str, str]:
    """Return the cgroup of a process in each hierarchy, version 2 as ``unified``.

    Return an empty dict if the process does not exist.
    """
    try:
        paths = membership.read(pid)
    except OSError:
        return {}
    return {names or "unified": path for names, path in paths.items()}


def belongs(pid: int, init: int) -> bool:
    """Return whether process ``pid`` belongs to the container with the init process ``init``.

    It must be in the cgroup of ``init``, or below, in every hierarchy: where runc uses
    version 1, the version 2 group is the manager's, which other processes share.
    """
    theirs = cgroups_of(pid)
    groups = [(names, path) for names, path in cgroups_of(init).items() if path != "/"]
    if groups and all(
        f"{theirs.get(names, '')}/".startswith(f"{path}/") for names, path in groups
    ):
        return True
    with suppress(psutil.Error):
        return pid == init or init in (parent.pid for parent in psutil.Process(pid).parents())
    return False


class ProcessSampler:
    """Samples processes repeatedly; keeps the previous sample to compute the use of cpu."""

    def __init__(self) -> None:
        self._previous: dict[tuple[int, float], tuple[float, float]] = {}

    def sample(self, pids: Iterable[Pid], init: int) -> list[ProcessUsage]:
        """Return the usage of each of ``pids`` that exists and belongs to the container."""
        current: dict[tuple[int, float], tuple[float, float]] = {}
        usages = []
        for one in pids:
            with suppress(psutil.Error):
                if belongs(one.pid, init):
                    usages.append(self._sample(one, current))
        self._previous = current
        return usages

    def _sample(
        self, one: Pid, current: dict[tuple[int, float], tuple[float, float]]
    ) -> ProcessUsage:
        process = psutil.Process(one.pid)
        with process.oneshot():
            times = process.cpu_times()
            now = (time.monotonic(), times.user + times.system)
            key = (one.pid, process.create_time())
            current[key] = now
            percent = None
            if before := self._previous.get(key):
                percent = round(100 * (now[1] - before[1]) / max(now[0] - before[0], 1e-3), 1)
            return ProcessUsage(
                pid=one.pid,
                exec_id=one.exec_id,
                parent=process.ppid(),
                user=process.username(),
                state=str(process.status()),
                threads=process.num_threads(),
                cpu_percent=percent,
                cpu_seconds=now[1],
                memory=process.memory_info().rss,
                command=" ".join(process.cmdline()) or process.name(),
            )


def memory_of(pid: int) -> int | None:
    """Return the resident memory of a process in bytes, None if it does not exist."""
    with suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss) if pid else None
    return None
