"""Facts about processes from /proc: memory, CPU time, threads, files, wake-ups, parents."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_KIB = 1024
_PR_SET_CHILD_SUBREAPER = 36  # Source: linux/prctl.h


def pss(pid: int) -> int:
    """Return the proportional share of memory, in bytes; 0 for a process that is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * _KIB
    return 0


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all live threads.

    From the scheduler, in nanoseconds; the ticks of ``stat`` are 10 ms, too
    coarse for a shim that spends 30 ms on 256 MiB.
    """
    total = 0
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    except (OSError, IndexError):
        fields = _stat(pid)
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total / 1e9


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def wakeups(pid: int) -> int:
    """Return how often the threads of ``pid`` have gone to sleep of their own will."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                total += int(line.split()[1])
    return total


def parent(pid: int) -> int:
    """Return the parent's pid; 0 if ``pid`` is gone."""
    with suppress(OSError):
        return int(_stat(pid)[1])
    return 0


def children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def state(pid: int) -> str:
    """Return the state's letter; Z, a zombie's, for a process that is gone."""
    with suppress(OSError):
        return _stat(pid)[0]
    return "Z"


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def fork_servers(daemons: Iterable[int]) -> set[int]:
    """Return the processes, other than init and us, that ``daemons`` are children of.

    A subreaper above the benchmark is no fork server.
    """
    above = set()
    pid = os.getpid()
    while pid > 0:
        above.add(pid)
        pid = parent(pid)
    return {parent(pid) for pid in daemons} - above - {0, 1}


def family(daemons: Iterable[int]) -> set[int]:
    """Return ``daemons`` with their fork servers and the spare children of these."""
    daemons = set(daemons)
    servers = fork_servers(daemons)
    return {*daemons, *servers, *(pid for server in servers for pid in children(server))}


def mentioning(*words: str, environ: bool = False) -> Iterator[int]:
    """Yield the live processes with all of ``words`` in their command lines.

    With ``environ`` their environments count too.
    """
    wanted = [os.fsencode(word) for word in words]
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with suppress(OSError):
            text = Path(f"/proc/{name}/cmdline").read_bytes()
            if environ:
                text += Path(f"/proc/{name}/environ").read_bytes()
            if all(word in text for word in wanted) and state(int(name)) != "Z":
                yield int(name)


def set_subreaper(on: bool) -> None:
    """Be, or be no longer, the parent of the orphans among our descendants."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
