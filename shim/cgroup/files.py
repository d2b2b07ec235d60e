"""The files and processes below a control group's directory, for version 1 and 2.

No file is kept open.  A missing file or group counts as empty and is not an error: a
group may be removed while we read it.
"""

from __future__ import annotations

import errno
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from shim.errors import NotFoundError, UnsupportedError
from shim.linux.modes import make_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# Errors of a file that counts as absent: it does not exist; the group or the process ended
# while it was open; this kernel has it disabled (pressure); we may not read it.
_ABSENT = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ESRCH)
    + (errno.EOPNOTSUPP, errno.EINVAL, errno.EACCES, errno.EPERM)
)
# Rounds of searching a group for new processes.  A process with a pending SIGKILL cannot
# fork, so a few rounds are enough even for a fork bomb.
_ROUNDS = 50
# Pidfds that are open at a time while a group is signalled.
_HELD = 64


def read_file(path: str) -> str | None:
    """Return the text, or None if the file is absent or cannot be read.

    Invalid UTF-8 becomes surrogates.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno in _ABSENT:
            return None
        raise
    try:
        data = chunk = os.read(fd, 65536)
        while chunk:  # a short read is not the end of a file of the kernel
            chunk = os.read(fd, 65536)
            data += chunk
    except OSError as exc:
        if exc.errno in _ABSENT:
            return None
        raise
    finally:
        os.close(fd)
    return data.decode(errors="surrogateescape")


def read_files(directory: str, names: Iterable[str]) -> dict[str, str]:
    """Return the text of each file that can be read, by name."""
    found = {}
    for name in names:
        text = read_file(f"{directory}/{name}")
        if text is not None:
            found[name] = text
    return found


def list_names(directory: str) -> list[str]:
    """Return the names in ``directory``, an empty list if it does not exist."""
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries]
    except OSError as exc:
        if exc.errno in _ABSENT:
            return []
        raise


def write_file(path: str, text: str) -> None:
    """Write to an existing file with one write(2).

    :raises OSError: the file does not exist, or the kernel rejects the text.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as exc:
        exc.filename = path
        raise
    finally:
        os.close(fd)


def subtree(directory: str) -> Iterator[str]:
    """Yield ``directory`` and every directory below it."""
    waiting = [directory]
    while waiting:
        here = waiting.pop()
        yield here
        try:
            # Each subdirectory adds a link to its parent: two links mean no subdirectory.
            if os.stat(here).st_nlink == 2:  # noqa: PTH116 - Path costs more than the call
                continue
            with os.scandir(here) as entries:
                waiting += [e.path for e in entries if e.is_dir(follow_symlinks=False)]
        except OSError as exc:
            if exc.errno not in _ABSENT:
                raise


def subtree_pids(directory: str) -> list[int]:
    """Return the processes in ``directory`` and below, each once.

    A process of another pid namespace is listed as 0.  It is left out, since a signal
    to pid 0 reaches our own process group.
    """
    pids: dict[int, None] = {}
    for here in subtree(directory):
        text = read_file(f"{here}/cgroup.procs") or ""
        pids.update((int(word), None) for word in text.split() if word.isdecimal())
    pids.pop(0, None)
    return list(pids)


def check_foreign(pids: Iterable[int], directory: str) -> None:
    """:raises UnsupportedError: ``pids`` has our own pid: the group is not the container's."""
    if os.getpid() in pids:
        raise UnsupportedError(
            f"cannot signal the processes of {directory}: the shim is one of them; "
            "give the container a separate cgroup"
        )


def signal_each(find: Callable[[], list[int]], number: int) -> None:
    """Signal every process that ``find`` returns, until it returns no new one."""
    done: set[int] = set()
    for _ in range(_ROUNDS):
        found = sorted(set(find()) - done)
        if not found:
            return
        for start in range(0, len(found), _HELD):
            _signal_held(found[start : start + _HELD], find, number)
        done |= set(found)


def _signal_held(pids: list[int], find: Callable[[], list[int]], number: int) -> None:
    # A pid may have been recycled before its pidfd was opened.  A pid that ``find`` returns
    # again after that belongs to the process of the pidfd.
    held: dict[int, int] = {}
    try:
        for pid in pids:
            with suppress(ProcessLookupError):
                held[pid] = os.pidfd_open(pid)
        for pid in held.keys() & set(find()):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(held[pid], number)
    finally:
        for fd in held.values():
            os.close(fd)


def has_room(directory: str, count: int) -> bool:
    """Return whether the limits of the group and its parents allow ``count`` more processes.

    False if a limit cannot be read.
    """
    while os.path.exists(f"{directory}/cgroup.procs"):  # noqa: PTH110 - a plain string all along
        try:
            limit = (read_file(f"{directory}/pids.max") or "max").strip()
            if limit != "max":
                used = int(read_file(f"{directory}/pids.current") or "0")
                if int(limit) - used < count:
                    return False
        except (OSError, ValueError):
            return False
        directory = os.path.dirname(directory)  # noqa: PTH120
    return True


def make_group(directory: str) -> None:
    """Create the group and its missing parents.

    :raises OSError: a directory cannot be created.
    """
    path = Path(directory)
    if path.is_dir():
        return
    make_group(str(path.parent))
    make_directory(path, 0o755, exist_ok=True)
    # A new v1 cpuset has no CPUs and no memory nodes, and the kernel rejects every process.
    for name in ("cpuset.cpus", "cpuset.mems"):
        inherited = (read_file(f"{path.parent}/{name}") or "").strip()
        if inherited and read_file(f"{path}/{name}") == "\n":
            write_file(f"{path}/{name}", inherited)


def join_group(directory: str, pid: int) -> None:
    """Move ``pid`` into the group; create the group if it is missing.

    :raises NotFoundError: there is no such process.
    """
    make_group(directory)
    try:
        write_file(f"{directory}/cgroup.procs", str(pid))
    except ProcessLookupError:
        raise NotFoundError(f"cannot move process {pid} to {directory}: it has ended") from None
