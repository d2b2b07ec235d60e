"""Does work of ``delete`` in a new process: within a time limit, or detached.

A process that waits for a disk that hangs cannot be killed, so such work needs its own one.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from shim import log
from shim.linux import libc
from shim.linux.fds import close_all_but
from shim.linux.pipes import read_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    # Keeps a result; the last one counts.
    Report = Callable[[bytes], object]

_LATE = "cannot finish the clean-up in time: the runtime, a mount or a disk hangs"
_RESULT = 4096  # bytes of a result at most
_SIZE = 2  # bytes of its size


def fork_detached(work: Callable[[], object], fds: Sequence[int]) -> None:
    """Do ``work`` in a new process, which is not waited for and keeps only ``fds`` open."""
    if os.fork():
        return
    try:
        os.setsid()
        # The manager waits for the end of the output: close it, and all other fds.
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for number in range(3):
            os.dup2(null, number)
        close_all_but(*fds)
        os.chdir("/")
        work()
    finally:
        os._exit(0)


def run_bounded(
    work: Callable[[Report], object],
    id_: str,
    meanwhile: Callable[[], None] = lambda: None,
    *,
    seconds: float,
) -> bytes:
    """Do ``work`` in a new process; return the last result it reports, after ``seconds`` at most.

    The result is empty if it has reported none.  A process that waits for a dead disk, such as
    a runtime or an unmount, cannot be killed: it is left running.  This process does
    ``meanwhile``, which must be bounded.
    """
    deadline = time.monotonic() + seconds
    reader, writer = os.pipe()
    memory = os.memfd_create("result")
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as exc:
        for fd in (reader, writer, memory):
            os.close(fd)
        log.warning("cannot fork; the clean-up runs without a time limit", id=id_, error=exc)
        results = [b""]
        work(results.append)
        meanwhile()
        return results[-1]
    if pid == 0:
        try:
            # If the manager kills ``delete``, the clean-up must not continue.
            libc.die_with_parent()
            if os.getppid() != parent:
                os._exit(1)
            # The manager waits for the end of the output: do not keep it open here.
            null = os.open(os.devnull, os.O_RDWR)
            for number, fd in enumerate((null, null, writer)):
                os.dup2(fd, number)
            close_all_but(memory)
            work(lambda result: _write_result(memory, result))
        except BaseException as exc:
            log.crash("cannot clean up the container", exc, id=id_)
        finally:
            os._exit(0)
    os.close(writer)
    try:
        meanwhile()
        output, ended = read_until(reader, deadline - time.monotonic())
        result = _read_result(memory)
    finally:
        os.close(reader)
        os.close(memory)
    with suppress(OSError):
        os.write(2, output)
    if not ended:
        log.warning(_LATE, id=id_)
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):  # SIGCHLD may be ignored, which is inherited
        os.waitpid(pid, 0 if ended else os.WNOHANG)
    return result


def _write_result(memory: int, result: bytes) -> None:
    # One write, as the parent may read at any time.
    os.pwrite(memory, len(result).to_bytes(_SIZE, "big") + result, 0)


def _read_result(memory: int) -> bytes:
    data = os.pread(memory, _RESULT, 0)
    return data[_SIZE : _SIZE + int.from_bytes(data[:_SIZE], "big")]
