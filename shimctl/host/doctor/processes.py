"""Facts about one process from /proc: its state, its environment, where its stderr goes.

Source: proc_pid_stat(5), proc_pid_status(5), proc_pid_environ(5), systemd's cgroup names.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shim.linux import membership

if TYPE_CHECKING:
    import signal

_UNIT = re.compile(r"/([^/]+\.service)(?:/|$)")
_MOST = 1 << 20  # bytes that are read of a file


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a process writes its stderr.

    ``kind`` is ``journal``, ``file``, ``terminal``, ``pipe``, ``nothing`` or ``unknown``;
    ``name`` is a unit or a path.
    """

    kind: str
    name: str = ""

    def __str__(self) -> str:
        match self.kind:
            case "journal":
                return f"`journalctl -u {self.name}`"
            case "nothing":
                return "nowhere: its stderr is /dev/null"
            case "pipe":
                return "a pipe to another program"
            case "unknown":
                return "an unknown place"
            case _:
                return self.name


def state_of(pid: int) -> str:
    """Return the state of a process: a letter such as ``S``; empty if it does not exist."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0].decode()
    except (OSError, IndexError):
        return ""


def catches(pid: int, number: signal.Signals) -> bool:
    """Return whether the process has a handler for a signal."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return False
    match = re.search(r"^SigCgt:\s*([0-9a-f]+)$", text, re.MULTILINE)
    return bool(match and int(match[1], 16) >> number - 1 & 1)


def program_of(pid: int) -> str:
    """Return the file name of the executable, empty if it is unknown."""
    try:
        return Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return ""


def search_path(pid: int) -> str:
    """Return the PATH of a process, empty if it has none or it cannot be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            words = file.read(_MOST).split(b"\0")
    except OSError:
        return ""
    return next((os.fsdecode(word[5:]) for word in words if word.startswith(b"PATH=")), "")


def unit_of(pid: int) -> str:
    """Return the unit of systemd that a process belongs to, empty if there is none."""
    try:
        paths = membership.read(pid).values()
    except OSError:
        return ""
    return next((match[1] for path in paths if (match := _UNIT.search(path))), "")


def stderr_of(pid: int) -> Destination:
    """Return where a process writes its stderr."""
    link = f"/proc/{pid}/fd/2"
    try:
        target = os.readlink(link)  # noqa: PTH115 - a name that need not be a path
        mode = os.stat(link).st_mode  # noqa: PTH116
    except OSError:
        return Destination("unknown")
    if stat.S_ISSOCK(mode):
        unit = unit_of(pid)
        return Destination("journal", unit) if unit else Destination("unknown")
    if target == os.devnull:
        return Destination("nothing", target)
    if stat.S_ISCHR(mode):
        return Destination("terminal", target)
    if stat.S_ISFIFO(mode):
        return Destination("pipe", target)
    return Destination("file", target)
