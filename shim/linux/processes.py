"""Reads the ancestors, the threads and the exit of a process from /proc and a pidfd."""

from __future__ import annotations

import os
import signal
import struct
from fcntl import ioctl
from pathlib import Path

from shim.linux.files import read_whole

# Fields of /proc/PID/stat, counted after the name; the flag is of include/linux/sched.h.
_PARENT = 1
_FLAGS = 6
_START = 19
_PF_EXITING = 0x4
_PF_KTHREAD = 0x200000
_LONGEST = 1 << 20  # bytes of a command line
# Source: linux/pidfd.h, struct pidfd_info: 64 bytes, first the mask, last the exit code.
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO = struct.Struct("=Q52xi")
_PIDFD_INFO_EXIT = 1 << 3
# The largest number of parents between a process and a descendant.
_GENERATIONS = 32


def is_exiting(pid: int) -> bool:
    """Return whether every thread of ``pid``, an unreaped process, is exiting."""
    try:
        # Any thread, also the first one, may exit before the others.
        for task in Path(f"/proc/{pid}/task").iterdir():
            fields = (task / "stat").read_bytes().rpartition(b")")[2].split()
            if not int(fields[_FLAGS]) & _PF_EXITING:
                return False
    except (FileNotFoundError, ProcessLookupError):
        return False  # a thread ended during the loop; the caller tries again
    return True


def parent_of(pid: int) -> int:
    """Return the parent of ``pid``, 0 if that is in another pid namespace.

    :raises FileNotFoundError, ProcessLookupError: there is no process ``pid``.
    """
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    return int(stat.rpartition(b")")[2].split()[_PARENT])


def started_at(pid: int) -> int:
    """Return the time at which ``pid`` was forked, in clock ticks since the boot.

    :raises FileNotFoundError, ProcessLookupError: there is no process ``pid``.
    """
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    return int(stat.rpartition(b")")[2].split()[_START])


def is_ending(pid: int) -> bool:
    """Return whether the first thread of ``pid`` is exiting or has exited."""
    try:
        return bool(_flags(pid) & _PF_EXITING)
    except (FileNotFoundError, ProcessLookupError):
        return True


def _flags(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    return int(stat.rpartition(b")")[2].split()[_FLAGS])


def command_line(pid: int) -> list[bytes] | None:
    """Return the command line of ``pid``, empty if it has ended; None during an execve(2).

    execve(2) first gives the process an empty address space, which has no command line, and
    loads the program into it.  Nothing else is empty but a zombie and a thread of the kernel.

    Source: linux fs/exec.c begin_new_exec(), fs/proc/base.c get_mm_cmdline().
    """
    try:
        data = read_whole(f"/proc/{pid}/cmdline", _LONGEST)
        if not data and not _flags(pid) & (_PF_EXITING | _PF_KTHREAD):
            return None
    except OSError:
        return []
    return data.split(b"\0")[:-1]


def is_descendant(pid: int, ancestor: int = 0) -> bool:
    """Return whether ``pid`` is a descendant of ``ancestor``, by default of this process."""
    own, one = ancestor or os.getpid(), pid
    for _ in range(_GENERATIONS):
        try:
            one = parent_of(one)
        except (FileNotFoundError, ProcessLookupError):
            return one != pid  # a parent ended during the loop: the caller tries again
        if one in (own, 0):
            return one == own
    return False


def is_gone(pidfd: int) -> bool:
    """Return whether the process was reaped; False for a zombie."""
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def reaped_status(pidfd: int) -> int | None:
    """Return the wait status, as of wait(2), of a process that any process reaped.

    None if it was not reaped, or if the kernel does not keep the status: before Linux 6.15.
    The pidfd must have been opened before the process was reaped.
    """
    info = bytearray(_PIDFD_INFO.size)
    _PIDFD_INFO.pack_into(info, 0, _PIDFD_INFO_EXIT, 0)
    try:
        ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:  # ENOTTY before Linux 6.13, ESRCH until 6.15
        return None
    mask, status = _PIDFD_INFO.unpack(info)
    return int(status) if mask & _PIDFD_INFO_EXIT else None
