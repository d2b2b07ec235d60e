"""The files and processes below a control group's directory, whatever its version.

Nothing is kept open.  What has vanished is empty, not an error: groups are
removed while we look at them.
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

# The file is not there; the group went while it was open; the process did; this
# kernel has it switched off (pressure) or not for us.  Anything else is trouble.
_ABSENT = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ESRCH)
    + (errno.EOPNOTSUPP, errno.EINVAL, errno.EACCES, errno.EPERM)
)
# Looks at a group until nobody new is found there.  A process with a pending
# SIGKILL cannot fork, so that a few looks are enough even for a fork bomb.
_ROUNDS = 50
# Processes of a group that are held by pidfd at a time.
_HELD = 64


def read_file(path: str) -> str | None:
    """Return the text, or None if the file is absent or cannot be read.

    Bytes that are no UTF-8 are surrogates, as in :func:`os.fsdecode`.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno in _ABSENT:
            return None
        raise
    try:
        chunks = []
        while chunk := os.read(fd, 65536):
            chunks.append(chunk)
    except OSError as exc:
        if exc.errno in _ABSENT:
            return None
        raise
    finally:
        os.close(fd)
    return os.fsdecode(b"".join(chunks))


def read_files(directory: str, names: Iterable[str]) -> dict[str, str]:
    """Return those of the files that can be read."""
    texts = ((name, read_file(f"{directory}/{name}")) for name in names)
    return {name: text for name, text in texts if text is not None}


def list_names(directory: str) -> list[str]:
    """Return the names in ``directory``, none if it is gone."""
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries]
    except OSError as exc:
        if exc.errno in _ABSENT:
            return []
        raise


def write_file(path: str, text: str) -> None:
    """Write to a file that exists, in one go.  Raises OSError."""
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
            # Each subdirectory has a link to its parent: two means there is none.
            if os.stat(here).st_nlink == 2:  # noqa: PTH116 - Path costs more than the call
                continue
            with os.scandir(here) as entries:
                waiting += [e.path for e in entries if e.is_dir(follow_symlinks=False)]
        except OSError as exc:
            if exc.errno not in _ABSENT:
                raise


def subtree_pids(directory: str) -> list[int]:
    """Return the processes in ``directory`` and below, each once.

    A process of another pid namespace shows as 0; it is left out, since signals
    to 0 go to ourselves.
    """
    pids: dict[int, None] = {}
    for here in subtree(directory):
        text = read_file(f"{here}/cgroup.procs") or ""
        pids.update((int(word), None) for word in text.split() if word.isdecimal())
    pids.pop(0, None)
    return list(pids)


def check_foreign(pids: Iterable[int], directory: str) -> None:
    """:raises UnsupportedError: we are in there: this is not one container's group."""
    if os.getpid() in pids:
        raise UnsupportedError(
            f"{directory} also holds the shim: give the container a cgroup of its own"
        )


def signal_each(find: Callable[[], list[int]], number: int) -> None:
    """Signal every process ``find`` finds, until it finds no new one."""
    done: set[int] = set()
    for _ in range(_ROUNDS):
        found = sorted(set(find()) - done)
        if not found:
            return
        for start in range(0, len(found), _HELD):
            _signal_held(found[start : start + _HELD], find, number)
        done |= set(found)


def _signal_held(pids: list[int], find: Callable[[], list[int]], number: int) -> None:
    # A pid may have become somebody else's before its pidfd was opened.  What is
    # found once more after that is what is held.
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
    """Say whether ``count`` more processes fit into the group and those above it.

    A number that cannot be read is no room.
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
    """Create the group and its parents, where missing.  Raises OSError."""
    path = Path(directory)
    if path.is_dir():
        return
    make_group(str(path.parent))
    make_directory(path, 0o755, exist_ok=True)
    # A new v1 cpuset has no CPUs and no memory, and takes no process.
    for name in ("cpuset.cpus", "cpuset.mems"):
        inherited = (read_file(f"{path.parent}/{name}") or "").strip()
        if inherited and read_file(f"{path}/{name}") == "\n":
            write_file(f"{path}/{name}", inherited)


def join_group(directory: str, pid: int) -> None:
    """Move ``pid`` into the group, which is created when missing.

    :raises NotFoundError: there is no such process.
    """
    make_group(directory)
    try:
        write_file(f"{directory}/cgroup.procs", str(pid))
    except ProcessLookupError:
        raise NotFoundError(f"process {pid} is gone: it cannot join {directory}") from None
