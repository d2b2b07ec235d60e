"""Identify the init process of a container whose shim is dead.

Its pid is read from a file, and the kernel may have given the pid to another process.  So
a pidfd is opened first, and the process behind it must be proved to be the container's:

- by its start time, which runc and crun keep in their state file beside its pid; or
- by its cgroup, if there is no such file: it must be in the one that config.json names.

While the pidfd shows no end, the kernel does not reuse the pid.

Source: runc libcontainer/container_linux.go (init_process_pid, init_process_start); crun
src/libcrun/status.c (pid, process-start-time); proc_pid_stat(5), "starttime".
"""

from __future__ import annotations

import json
import os
import select
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shim.errors import WrongStateError
from shim.linux.files import read_whole
from shimctl.remains import is_in_cgroup_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_LONGEST = 16 << 20  # bytes of a state file, which contains the whole configuration
_DEFAULT_ROOT = "/run/containerd/runc"
_START = 19  # the index of the start time in /proc/PID/stat, counted after the name


@dataclass(frozen=True, slots=True)
class Init:
    """A process that was proved to be the init process of ``container``."""

    container: str
    pid: int
    pidfd: int

    def check(self) -> None:
        """Check that it has not ended, so that ``pid`` still is its pid.

        :raises WrongStateError: it has ended.
        """
        if select.select([self.pidfd], [], [], 0)[0]:
            raise WrongStateError(f"the init process of {self.container} has ended")


@contextmanager
def open_init(container: str, namespace: str, bundle: str | Path) -> Iterator[Init]:
    """Identify the running init process of the container in ``bundle``, for the block.

    :raises WrongStateError: it has ended, or cannot be proved to be the container's.
    """
    pid, started = _recorded(container, namespace, Path(bundle))
    try:
        pidfd = os.pidfd_open(pid) if pid > 0 else -1
    except (OSError, OverflowError):
        pidfd = -1
    if pidfd < 0:
        raise WrongStateError(f"no init process of {container} was found in {bundle}")
    try:
        init = Init(container, pid, pidfd)
        try:
            if started is None:
                proved = is_in_cgroup_of(Path(bundle), container, pid)
            else:
                proved = _start_time(pid) == started
        except (OSError, ValueError, IndexError):
            proved = False
        init.check()
        if not proved:
            raise WrongStateError(
                f"process {pid} is not the init process of {container}; its pid was used again"
            )
        yield init
    finally:
        os.close(pidfd)


def is_running(container: str, namespace: str, bundle: str | Path) -> bool:
    """Return whether :func:`open_init` finds the init process of the container."""
    try:
        with open_init(container, namespace, bundle):
            return True
    except WrongStateError:
        return False


def _recorded(container: str, namespace: str, bundle: Path) -> tuple[int, int | None]:
    """Return the pid, 0 if none is known, and the start time in clock ticks, if it is known."""
    root = _read(bundle / "options.json").get("root")
    directory = Path(root if root and isinstance(root, str) else _DEFAULT_ROOT, namespace)
    for name, pid, start in (
        ("state.json", "init_process_pid", "init_process_start"),
        ("status", "pid", "process-start-time"),
    ):
        state = _read(directory / container / name)
        if type(state.get(pid)) is int and type(state.get(start)) is int:
            return state[pid], state[start]
    with suppress(OSError, ValueError):
        return int(read_whole(str(bundle / "init.pid"), 64)), None
    return 0, None


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(read_whole(str(path), _LONGEST))
        if isinstance(found, dict):
            return found
    return {}


def _start_time(pid: int) -> int:
    # The name may contain spaces and parentheses.
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[_START])
