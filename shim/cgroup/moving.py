"""Makes the kernel's wait for a move between cgroups happen before the runtime needs it.

To move a process between control groups, the kernel takes cgroup_threadgroup_rwsem for
writing; every fork and exit on the host takes it for reading.  The lock is a per-CPU
rwsem, which is cheap for readers.  The first writer waits an RCU grace period of some
10 ms; a second writer within a few milliseconds does not wait again.  Without this
module, ``runc create`` and ``runc exec`` would wait in the middle of their work.  So a
thread is the first writer while the runtime is still being loaded: it writes its own id
to its own group.  It is a thread because the wait is uninterruptible in the kernel.

This is an optimisation only: if it fails, the runtime waits itself.

Source: kernel/cgroup/cgroup.c cgroup_attach_lock, kernel/rcu/sync.c.  The mount option
favordynmods has the same effect permanently and makes each fork on the host slower.
"""

from __future__ import annotations

import _thread
import functools
import os
import time
from contextlib import suppress

from shim.cgroup.find import own_threads_file

# The group of this process at the first call.  If the process moves later, only the thread
# is moved back, which is about to end.
_file = functools.cache(own_threads_file)
# One thread at a time serves all runtime commands that run at once.
_under_way = False


def prepare_move() -> None:
    """Start the thread; return at once.  It never raises."""
    global _under_way
    if _under_way:
        return
    try:
        if (path := _file()) is None:
            return
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        _file.cache_clear()
        return
    _under_way = True
    try:
        _thread.start_new_thread(_move_to, (fd,))
    except RuntimeError:  # the host has no room for a thread
        os.close(fd)
        _under_way = False


def _move_to(fd: int) -> None:
    """Write this thread's id into the file ``fd``, a group's thread list, and close it."""
    global _under_way
    with suppress(OSError):
        # Not 0, the calling thread: the kernel does not take the lock for that.
        os.write(fd, b"%d" % _thread.get_native_id())
    os.close(fd)
    _under_way = False


def finish(seconds: float = 1.0) -> None:
    """Wait for the thread's end, at most ``seconds``: a fork must happen without threads."""
    deadline = time.monotonic() + seconds
    while _under_way and time.monotonic() < deadline:
        time.sleep(0.001)  # once, before the fork server forks
