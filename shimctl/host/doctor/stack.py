"""Gets the stack of a daemon that does not answer.

On SIGUSR1 a daemon of this project writes the stack of its thread to its log, which is
the fifo ``log`` in the bundle.  The manager reads that fifo.  If no manager does, the
bytes stay in it, and tee(2) copies them without removing them.  Otherwise the manager
writes them to its own log: this module reads that, if it is a file.

A process that is stopped, or that waits for a disk, runs no handler.  For it the kernel's
own stack is returned.

Source: :func:`shim.daemon.run`; tee(2); proc_pid_stack(5).
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from shim.linux import libc
from shimctl.host.doctor import processes

_WAIT = 1.0  # s for the stack to arrive
_POLL = 0.02  # s; tee(2) and a file have no event
_MOST = 1 << 16  # bytes of the stack
_END = b"most recent call first"


@dataclass(frozen=True, slots=True)
class Stack:
    """``state`` explains the process's state; ``text`` is its stack, or where it went."""

    state: str
    text: str = ""
    remedy: str = ""


async def stack_of(pid: int) -> Stack:
    """Return the state and the stack of the daemon ``pid``."""
    match processes.state_of(pid):
        case "":
            return Stack("its process has ended")
        case "T" | "t":
            return Stack("a signal stopped its process", "", f"kill -CONT {pid}")
        case "Z":
            return Stack("its process has exited and was not reaped")
        case "D":
            text = await trio.to_thread.run_sync(_kernel_stack, pid, abandon_on_cancel=True)
            return Stack("its process waits for a disk or a driver", text)
        case _:
            return Stack("its process runs", await _python_stack(pid))


def _kernel_stack(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stack").read_text(errors="replace").strip()
    return ""


async def _python_stack(pid: int) -> str:
    """Make the daemon write its stack; return it, or the name of the log that has it."""
    is_ours = processes.program_of(pid).startswith("python")
    if not is_ours or not processes.catches(pid, signal.SIGUSR1):
        return ""  # the signal would end another program
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return ""
    try:
        where = _reader_of(pid)
        log = where.name if where.kind == "file" else f"/proc/{pid}/fd/2"
        with suppress(OSError):
            size = os.stat(log).st_size if where.kind == "file" else 0  # noqa: PTH116
            fd = os.open(log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                before = _peek(fd, size)
                signal.pidfd_send_signal(pidfd, signal.SIGUSR1)
                with trio.move_on_after(_WAIT):
                    while True:
                        await trio.sleep(_POLL)
                        new = _peek(fd, size)[len(before) :]
                        if _END in new and new.endswith(b"\n"):
                            return new.decode(errors="replace").strip()
            finally:
                os.close(fd)
    finally:
        os.close(pidfd)
    return f"its stack is in {where}"


def _peek(fd: int, offset: int) -> bytes:
    """Return the unread bytes of a pipe, or those of a file after ``offset``; remove none."""
    with suppress(OSError):
        return os.pread(fd, _MOST, offset)
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        count = libc.tee(fd, writer, _MOST)
        return os.read(reader, count) if count else b""
    except BlockingIOError:
        return b""
    finally:
        os.close(reader)
        os.close(writer)


def _reader_of(pid: int) -> processes.Destination:
    """Return where the process that reads the log of the daemon ``pid`` writes its own."""
    try:
        log = os.stat(f"/proc/{pid}/fd/2")  # noqa: PTH116
    except OSError:
        return processes.Destination("unknown")
    for process in os.listdir("/proc"):  # noqa: PTH208 - names, not paths
        if not process.isdigit() or int(process) in (pid, os.getpid()):
            continue
        if processes.program_of(int(process)).startswith("python"):
            continue  # another daemon, or its helper
        with suppress(OSError):
            for fd in os.listdir(f"/proc/{process}/fd"):  # noqa: PTH208
                with suppress(OSError):
                    found = os.stat(f"/proc/{process}/fd/{fd}")  # noqa: PTH116
                    if (found.st_dev, found.st_ino) == (log.st_dev, log.st_ino):
                        return processes.stderr_of(int(process))
    return processes.Destination("pipe")
