"""Find the processes that read a fifo, which take bytes from each other.

Source: proc(5) for /proc/PID/fd and fdinfo.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_ACCESS = 0o3  # O_ACCMODE


@dataclass(frozen=True, slots=True)
class Reader:
    """A process that has the fifo open to read."""

    pid: int
    name: str


def readers_of(path: str, *, except_for: Collection[int] = (), knowing: str = "") -> list[Reader]:
    """List the processes that have the fifo at ``path`` open to read.

    Processes that we may not inspect are left out, and those that also have the
    file ``knowing`` open.
    """
    wanted = os.stat(path)  # noqa: PTH116 - the path comes as the string a shim gave
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal() or int(process.name) in except_for:
            continue
        # The process may have ended, or we may not inspect it.
        with suppress(OSError):
            if any(_reads(fd, wanted) for fd in _open_at(process, path)):
                if knowing and any(_open_at(process, knowing)):
                    continue
                comm = (process / "comm").read_bytes().removesuffix(b"\n").decode(errors="replace")
                found.append(Reader(int(process.name), comm))
    return found


def _open_at(process: Path, path: str) -> Iterator[str]:
    # Compare names first: a stat of an unrelated file may block, for example on NFS.
    name = path.rpartition("/")[2]
    for fd in os.listdir(process / "fd"):  # noqa: PTH208 - numbers, not paths
        with suppress(OSError):
            link = os.readlink(process / "fd" / fd)  # noqa: PTH115 - mostly not a path
            if link.rpartition("/")[2] == name:
                yield f"{process}/fd/{fd}"


def _reads(fd: str, wanted: os.stat_result) -> bool:
    try:
        status = os.stat(fd)  # noqa: PTH116 - as above
        if (status.st_dev, status.st_ino) != (wanted.st_dev, wanted.st_ino):
            return False
        lines = Path(fd.replace("/fd/", "/fdinfo/")).read_bytes().split(b"\n")
    except OSError:
        return False
    flags = next((line.split()[1] for line in lines if line.startswith(b"flags:")), b"0")
    return int(flags, 8) & _ACCESS != os.O_WRONLY
