"""Makes a forked process a daemon: its fds, and its attributes in the kernel."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from shim import log
from shim.cgroup.find import cgroup_at
from shim.cgroup.v1 import CgroupV1
from shim.container.options import Options
from shim.errors import (
    InvalidError,
    UnsupportedError,
)
from shim.linux import libc
from shim.linux.fds import close_from
from shim.start.caller import Caller

if TYPE_CHECKING:
    from shim.start.flags import Invocation

# The numbers of a new daemon's fds, beside 0 to 2; all others are closed.
_LISTENER = 3
_CALLER = 4
_CHANNEL = 5


def detach(
    invocation: Invocation,
    listener: socket.socket,
    caller: Caller,
    channel: socket.socket | None = None,
) -> tuple[socket.socket, Caller, socket.socket | None]:
    """Start a session, close all inherited fds but these and open the log.

    ``channel`` is that to the keeper.  Returns the three with their new fds.
    """
    os.setsid()
    log_fd = _open_log()
    null = os.open(os.devnull, os.O_RDWR)
    kept = [null, null, log_fd, listener.fileno(), caller.connection.fileno()]
    kept += [] if channel is None else [channel.detach()]
    # First to high numbers, since each fd can have a number that another one gets.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for fd in kept]
    listener.detach()
    caller.connection.detach()
    for number, fd in enumerate(high):
        os.dup2(fd, number, inheritable=number < _LISTENER)
    close_from(len(high))
    log.configure(2, invocation.level)
    if invocation.warning:
        log.warning(invocation.warning)
    return (
        socket.socket(fileno=_LISTENER),
        Caller(socket.socket(fileno=_CALLER), caller.manager),
        None if channel is None else socket.socket(fileno=_CHANNEL),
    )


def title_of(invocation: Invocation, title: str) -> list[str]:
    """Return the words that ``ps`` shows of a daemon; ``title`` is the executable's name."""
    words = [title, "-namespace", invocation.namespace, "-id", invocation.id]
    return [*words, "-address", invocation.grpc_address]


def set_attributes(invocation: Invocation, manager: int, title: str) -> None:
    """Set the attributes of a new daemon's process.

    These are those of :func:`reset_attributes`, its OOM score, cgroup, scheduling core and
    working directory.  ``manager`` is the pid of the manager.  Call it after :func:`detach`:
    an error is sent through the caller's new fd.

    :raises InvalidError: the cgroup of the options cannot be joined.
    :raises UnsupportedError: SCHED_CORE is set and the kernel has no core scheduling.
    """
    reset_attributes(title_of(invocation, title))
    _adjust_oom_score(manager)
    join_cgroup(shim_cgroup_of(invocation))
    if invocation.sched_core:
        _isolate_core()
    os.chdir("/")


def reset_attributes(title: list[str]) -> None:
    """Set a daemon's signal mask and handlers, keyring, subreaper flag, name and huge pages.

    ``title`` are the words of :func:`title_of`.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    with suppress(OSError):  # a kernel without keys, or a filter that forbids it
        libc.join_new_session_keyring()
    libc.set_child_subreaper()
    libc.set_name(title[0])
    libc.set_title(title)
    with suppress(OSError):  # a kernel without huge pages
        libc.disable_thp()


def _open_log() -> int:
    """Open the manager's log fifo in the bundle; without a fifo, discard the log.

    The fd is open for reading too, so that the fifo survives a restart of the manager.
    """
    try:
        return os.open("log", os.O_RDWR | os.O_NONBLOCK | os.O_APPEND | os.O_CLOEXEC)
    except OSError:
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def _adjust_oom_score(manager: int) -> None:
    """Set the OOM score adjustment to the manager's plus one, at most 1000.

    Then the OOM killer prefers a container to the shim, and the shim to the manager.
    Source: containerd pkg/shim/util_unix.go AdjustOOMScore.
    """
    try:
        score = int(Path(f"/proc/{manager}/oom_score_adj").read_text())
        Path("/proc/self/oom_score_adj").write_text(str(min(score + 1, 1000)))
    except (OSError, ValueError) as exc:
        log.warning("cannot set the OOM score of the shim", error=exc)


def shim_cgroup_of(invocation: Invocation) -> str:
    """Return the option ``shim_cgroup``, empty if it is not set."""
    return Options.decode(invocation.options).shim_cgroup


def join_cgroup(path: str) -> None:
    """Join the cgroup of the option ``shim_cgroup``, in each hierarchy that has it.

    Do nothing if ``path`` is empty.  The cgroup is not created here, since no process would
    remove it.

    :raises InvalidError: it does not exist, or the kernel refuses the process.
    """
    if not path:
        return
    try:
        cgroup = cgroup_at(path)
        if not cgroup.exists():
            raise InvalidError(
                f"cannot join shim_cgroup {path[:200]!r}: it does not exist; create it first"
            )
        if isinstance(cgroup, CgroupV1):
            # In a hierarchy without it, the shim stays in the manager's cgroup.
            there = {name: one for name, one in cgroup.directories.items() if os.path.isdir(one)}  # noqa: PTH112 - the values are plain strings
            cgroup = CgroupV1(there)
        cgroup.add(os.getpid())
    except OSError as exc:
        text = f"cannot join the shim's cgroup {path[:200]!r}: {exc.strerror}"
        raise InvalidError(text) from None


def _isolate_core() -> None:
    """Get a core scheduling cookie: only the shim and its containers share a core.

    :raises UnsupportedError: the kernel has no core scheduling.  This is an error, since
        the environment requests the isolation.
    """
    try:
        libc.create_core_cookie()
    except OSError as exc:
        raise UnsupportedError(
            "cannot isolate the shim's core: "
            f"SCHED_CORE is set and this machine has no core scheduling ({exc.strerror}); "
            "unset it, or use a kernel with CONFIG_SCHED_CORE and SMT enabled"
        ) from None
