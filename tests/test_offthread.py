"""Threads beside the event loop: the resources that they share with it, and the fallback
without a thread.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
import trio

from shim.errors import TimedOutError
from shim.offthread import run_off_thread, wait_unchanged

if TYPE_CHECKING:
    from pathlib import Path

# The kernel delivers a signal of the process to any thread that does not block it.  The
# handler writes to the wakeup fd, which this thread does not have.
SCRIPT = """
import os, signal, threading
from shim.offthread import own_fds

wakeup, wake = os.pipe2(os.O_NONBLOCK)
ready, done = threading.Event(), threading.Event()

def work():
    own_fds()
    ready.set()
    done.wait(30)

signal.set_wakeup_fd(wake)
signal.signal(signal.SIGUSR1, lambda *_: None)
thread = threading.Thread(target=work)
thread.start()
ready.wait(30)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
os.kill(os.getpid(), signal.SIGUSR1)
done.set()
thread.join(30)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
assert os.read(wakeup, 16) == bytes([signal.SIGUSR1])
"""


def test_a_signal_wakes_the_loop_though_only_a_thread_could_take_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# No thread's stack fits into the remaining address space.
NO_ROOM = """
import errno, resource, sys, threading, time
from shim.api.envelope_pb2 import Envelope
from shim.events.backlog import Backlog
from shim.stdio.spool import Overflow
from shim.events import threadedjournal

threading.stack_size(512 << 20)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (128 << 20), resource.RLIM_INFINITY))
try:
    Overflow(1 << 20, (sys.argv[1],)).open()
except OSError as exc:
    assert exc.errno == errno.EAGAIN, exc
else:
    raise AssertionError("there was room")
backlog = Backlog(sys.argv[1] + "/journal", threaded=True)
try:
    backlog.load()
except OSError:
    pass
backlog.append(Envelope(topic="/tasks/start"))
for _ in range(9):
    backlog.append(Envelope(topic="/tasks/exit"))
assert len(backlog) == 10
backlog.acknowledge()
# There is room again: all events that are not acknowledged are written.
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
threadedjournal.time.monotonic = lambda now=time.monotonic() + 11: now
backlog.retry()
backlog.append(Envelope(topic="/tasks/delete"))
written = open(sys.argv[1] + "/journal", "rb").read()
assert (written.count(b"/tasks/exit"), written.count(b"/tasks/delete")) == (9, 1), written
backlog.close()
"""


def test_without_room_for_a_thread_output_and_events_go_on(tmp_path: Path) -> None:
    """They cannot be kept on a disk then; the relay and the publisher have no other error."""
    done = subprocess.run(
        [sys.executable, "-c", NO_ROOM, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # One line for each of: the load, and the first event after it.
    assert done.stderr.count("cannot start a thread") == 1, done.stderr


async def test_an_operation_given_up_changes_its_object_until_it_is_undone() -> None:
    blocked, undo, undone = threading.Event(), threading.Event(), threading.Event()

    def late() -> None:
        undo.wait(30)
        undone.set()

    with pytest.raises(TimedOutError, match="first"):
        await run_off_thread(
            lambda: blocked.wait(30), "first", limit=0.01, late=late, changes="/rootfs"
        )
    await wait_unchanged("/another", 0)
    blocked.set()
    with pytest.raises(TimedOutError, match="/rootfs: an earlier operation"):
        await wait_unchanged("/rootfs", 0.05)
    undo.set()
    with trio.fail_after(30):
        await wait_unchanged("/rootfs", 30)
    assert undone.is_set()


async def test_a_finished_or_failed_operation_changes_its_object_no_more() -> None:
    await run_off_thread(lambda: None, "first", limit=30, changes="/rootfs")
    with pytest.raises(ZeroDivisionError):
        await run_off_thread(lambda: 1 // 0, "second", limit=30, changes="/rootfs")
    await wait_unchanged("/rootfs", 0)
