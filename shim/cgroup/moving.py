"""Has the kernel ready to move a process to another group when the runtime comes to that.

Whoever moves a process takes a lock that every fork and every exit on the host
takes too.  For their sake it is free for them until somebody moves; the first who
does then waits for all processors to have seen it, an RCU grace period of some
10 ms, half way through ``runc create`` and ``runc exec``.  Who comes a few
milliseconds after does not wait again.  So we are the first, as soon as the runtime
runs and while it is still being loaded: a thread, since the wait is one of the
kernel's that nothing interrupts, moves itself to the group it is in, and ends.

Nothing depends on it: where it cannot be done, the runtime waits, as it would alone.

Source: kernel/cgroup/cgroup.c cgroup_attach_lock, kernel/rcu/sync.c; the mount
option favordynmods does the same for a host, for good, at the price of each fork.
"""

from __future__ import annotations

import _thread
import functools
import os
import time
from contextlib import suppress

from shim.cgroup.find import own_threads_file

# Where we were when it was first asked.  Should that change, a thread is moved that
# is about to end: no harm done.
_file = functools.cache(own_threads_file)
# Of any number of processes in the making, one needs it.
_under_way = False


def prepare_move() -> None:
    """Begin; returns at once, and never fails."""
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
    """Move this thread into the group of ``fd``, which is closed."""
    global _under_way
    with suppress(OSError):
        # Not 0 for itself, for which the kernel does without the lock.
        os.write(fd, b"%d" % _thread.get_native_id())
    os.close(fd)
    _under_way = False


def finish(seconds: float = 1.0) -> None:
    """Wait for what was begun, at most ``seconds``: who is about to fork is alone then."""
    deadline = time.monotonic() + seconds
    while _under_way and time.monotonic() < deadline:
        time.sleep(0.001)  # for once, at the end of a rehearsal
