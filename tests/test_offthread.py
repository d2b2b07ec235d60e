"""Threads with fds of their own take no signals away from the event loop."""

from __future__ import annotations

import subprocess
import sys

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
