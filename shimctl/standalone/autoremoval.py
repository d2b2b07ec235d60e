"""Remove the containers of ``run --rm -d`` at their end, without a process that polls.

Each has a monitor, :mod:`shimctl.standalone.monitor`, which inherits a pidfd of its init
process and holds the lock of that run in its working directory.  A restart starts a new
monitor for the new run.  It holds the lock of the change meanwhile; then the earlier
monitor finds the number of a later run, and exits.
"""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from shim.errors import NotFoundError, ShimError, WrongStateError
from shim.linux.modes import write_file
from shim.text import explain
from shimctl.standalone import monitor, runlock
from shimctl.standalone.runlock import Part
from shimctl.standalone.settings import read_settings
from shimctl.standalone.unattended import FAILURE

if TYPE_CHECKING:
    from shimctl.client import Task

_EXITED = 10  # s for the shim to report the exit that the pidfd showed


async def start_monitor(work: Path, task: Task, namespace: str, run: int) -> None:
    """Start the monitor of a container that was created, or runs.

    :raises WrongStateError: the init process has exited already, or there is a monitor.
    :raises ShimError: the monitor cannot be started.
    """
    pid = (await task.state()).pid
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise WrongStateError(f"the init process of {task.id} has exited") from None
    try:
        # It has not exited after the pidfd was opened, so the pid was not reused before.
        if (await task.state()).pid != pid or select.select([pidfd], [], [], 0)[0]:
            raise WrongStateError(f"the init process of {task.id} has exited")
        lock = runlock.open_file(work)
        try:
            runlock.take(lock, Part.MONITOR, work, run)
            _spawn(work, task.id, namespace, run, (pidfd, lock))
        finally:
            os.close(lock)
    finally:
        os.close(pidfd)


def _spawn(work: Path, container: str, namespace: str, run: int, fds: tuple[int, int]) -> None:
    """Start the process; it keeps ``fds``, the pidfd and the lock."""
    import subprocess  # late: loads slowly

    arguments = (str(work), container, namespace, run, fds[0])
    code = (
        f"import sys;sys.path[:]={_paths()!a};"
        f"from shimctl.standalone import monitor;monitor.main(*{arguments!a})"
    )
    try:
        subprocess.Popen(
            [sys.executable, "-ISc", code],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # neither Ctrl-C nor the end of our terminal ends it
            pass_fds=fds,
        )
    except OSError as exc:
        raise ShimError(f"cannot start the monitor of {container}: {exc.strerror}") from None


def _paths() -> list[str]:
    """Return where the monitor finds modules: as we do, but not in the working directory."""
    own = str(Path(monitor.__file__).parents[2])
    here = os.getcwd()  # noqa: PTH109 - compared with plain strings
    rest = [path for path in sys.path if os.path.isabs(path) and path not in (own, here)]  # noqa: PTH117 - plain strings
    return [own, *rest]


def remove_ended(work: str, container: str, namespace: str, run: int) -> None:
    """Remove a container whose run ``run`` has ended; leave one that was started again.

    If that fails, the reason is written to a file in its directory.
    """
    path = Path(work)
    with suppress(NotFoundError), runlock.waited_for(path, Part.CHANGE):  # else it is gone
        kept = read_settings(path)
        if kept.runs != run or not kept.remove:
            return
        import trio

        try:
            trio.run(_remove, path, container, namespace)
        except Exception as exc:
            with suppress(OSError):
                write_file(path / FAILURE, f"{explain(exc)}\n")


async def _remove(work: Path, container: str, namespace: str) -> None:
    from shimctl.client import connect
    from shimctl.exits import find_address
    from shimctl.standalone.removal import dispose_held

    # The clients that wait for the exit get it before the container is deleted.
    with suppress(ShimError):
        async with connect(find_address(work), namespace=namespace) as shim:
            await shim.task(container).wait(timeout=_EXITED)
    await dispose_held(work, container, namespace)
