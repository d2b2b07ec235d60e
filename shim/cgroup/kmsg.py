"""Counts OOM kills in the kernel's log, for a cgroup that was removed before its counter was read.

systemd removes a scope as soon as its last process ends.  A kill of that process is then
recorded only in the kernel's log.  The kernel logs a line with the victim's pid for each
kill.  Before it, at most ten times in five seconds, it logs a line with the victim's group.

Source: Linux Documentation/ABI/testing/dev-kmsg; mm/oom_kill.c dump_oom_summary()
and __oom_kill_process(); kernel/printk/printk.c msg_add_ext_text() for the escapes.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from shim import log

if TYPE_CHECKING:
    from collections.abc import Collection

_KMSG = "/dev/kmsg"
_RECORD = 8192  # bytes; the kernel's limit for one record; one read returns one record
_SUMMARY = re.compile(r"oom-kill:.*,task_memcg=(?P<group>.*),task=.*,pid=(?P<pid>\d+),uid=\d+")
_KILLED = re.compile(r".*[Oo]ut of memory.*: Killed process (?P<pid>\d+) \(")
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")  # backslash, and every byte not printable ASCII
_FIRST_NAMESPACE = 0xEFFFFFFC  # linux/proc_ns.h PROC_PID_INIT_INO


class KernelLog:
    """The records logged after its creation.  It owns an fd until :meth:`close`."""

    def __init__(self) -> None:
        self._fd = -1
        self._victims: dict[int, str] = {}  # pid to group, "" when not logged
        try:
            # In another pid namespace, the pids in the log are not ours.
            if Path("/proc/self/ns/pid").stat().st_ino == _FIRST_NAMESPACE:
                self._fd = os.open(_KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as exc:  # we may not read it
            log.debug("cannot open the kernel log: some OOM kills are not counted", error=exc)

    def kills(self, group: str, members: Collection[int]) -> int:
        """Return the number of kills in ``group`` and below, and of the pids ``members``.

        ``group`` is the path of a control group in its hierarchy.
        """
        self._read_on()
        return sum(
            pid in members or f"{where}/".startswith(f"{group}/")
            for pid, where in self._victims.items()
        )

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read_on(self) -> None:
        while self._fd >= 0:
            try:
                record = os.read(self._fd, _RECORD)
            except OSError as exc:
                if exc.errno == errno.EPIPE:  # records were overwritten before we read them
                    continue
                return  # EAGAIN: there are no more records
            if not record:  # a regular file in the place of the device
                return
            pid, group = parse_kill(os.fsdecode(record))
            if pid:
                self._victims[pid] = group or self._victims.get(pid, "")


def parse_kill(record: str) -> tuple[int, str]:
    """Return a victim's pid and group: 0 if the record has no pid, "" if it has no group."""
    text = record.partition(";")[2]
    if found := _SUMMARY.match(text):
        return int(found["pid"]), _unescaped(found["group"])
    if found := _KILLED.match(text):
        return int(found["pid"]), ""
    return 0, ""


def _unescaped(text: str) -> str:
    data = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), os.fsencode(text))
    return os.fsdecode(data)
