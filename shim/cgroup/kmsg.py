"""The kernel's log, for the OOM kills of a group that is gone with its counter.

systemd removes a scope the moment its last process ends: a kill of that process is
told in the log, and nowhere else that lasts.  Each kill is a line with the victim's
pid.  The line with its group comes before that, ten times in five seconds at most.

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
_RECORD = 8192  # bytes; the kernel's own bound for one, which is what one read returns
_SUMMARY = re.compile(r"oom-kill:.*,task_memcg=(?P<group>.*),task=.*,pid=(?P<pid>\d+),uid=\d+")
_KILLED = re.compile(r".*[Oo]ut of memory.*: Killed process (?P<pid>\d+) \(")
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")  # every byte but printable ASCII, and backslash
_FIRST_NAMESPACE = 0xEFFFFFFC  # linux/proc_ns.h PROC_PID_INIT_INO


class KernelLog:
    """What is logged from now on.  It owns an fd, until :meth:`close`."""

    def __init__(self) -> None:
        self._fd = -1
        self._victims: dict[int, str] = {}  # pid to group, "" when it was not said
        try:
            # In another pid namespace we do not know the pids of the log.
            if Path("/proc/self/ns/pid").stat().st_ino == _FIRST_NAMESPACE:
                self._fd = os.open(_KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as exc:  # not ours to read
            log.debug("no kernel log", error=exc)

    def kills(self, group: str, members: Collection[int]) -> int:
        """Return how many were killed of ``group``, a path, those below, and ``members``."""
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
                if exc.errno == errno.EPIPE:  # some were overwritten before we read them
                    continue
                return  # EAGAIN: that was all
            if not record:  # somebody put a file there
                return
            pid, group = parse_kill(os.fsdecode(record))
            if pid:
                self._victims[pid] = group or self._victims.get(pid, "")


def parse_kill(record: str) -> tuple[int, str]:
    """Return the pid and the group of a victim: 0 if it tells of none, "" if not of which."""
    text = record.partition(";")[2]
    if found := _SUMMARY.match(text):
        return int(found["pid"]), _unescaped(found["group"])
    if found := _KILLED.match(text):
        return int(found["pid"]), ""
    return 0, ""


def _unescaped(text: str) -> str:
    data = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), os.fsencode(text))
    return os.fsdecode(data)
