"""What a forked process does to become a daemon."""

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
from shim.start.caller import Caller

if TYPE_CHECKING:
    from shim.start.flags import Invocation

# Where a daemon keeps what it is born with; nothing else is open then.
_LISTENER = 3
_CALLER = 4


def detach(
    invocation: Invocation, listener: socket.socket, caller: Caller
) -> tuple[socket.socket, Caller]:
    """Leave everything the launcher came with; return what was kept under its new numbers."""
    os.setsid()
    log_fd = _open_log()
    null = os.open(os.devnull, os.O_RDWR)
    kept = (null, null, log_fd, listener.fileno(), caller.connection.fileno())
    # Out of the way first: any of them may have one of the numbers they go to.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for fd in kept]
    listener.detach()
    caller.connection.detach()
    for number, fd in enumerate(high):
        os.dup2(fd, number, inheritable=number < _LISTENER)
    os.closerange(len(high), os.sysconf("SC_OPEN_MAX"))
    log.configure(2, invocation.level)
    if invocation.warning:
        log.warning(invocation.warning)
    return socket.socket(fileno=_LISTENER), Caller(socket.socket(fileno=_CALLER), caller.manager)


def set_attributes(invocation: Invocation, manager: int, title: str) -> None:
    """Become what a daemon is to the kernel.

    Only after :func:`detach`, since what fails here is told through the caller's new fds.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    with suppress(OSError):  # a kernel without keys, or a filter that forbids it
        libc.join_new_session_keyring()
    libc.set_child_subreaper()
    libc.set_name(title)
    words = ["-namespace", invocation.namespace, "-id", invocation.id]
    libc.set_title([title, *words, "-address", invocation.grpc_address])
    with suppress(OSError):  # a kernel without huge pages has none to keep away
        libc.disable_thp()
    _adjust_oom_score(manager)
    _join_cgroup(invocation)
    if invocation.sched_core:
        _isolate_core()
    os.chdir("/")


def _open_log() -> int:
    """Open the manager's log fifo in the bundle; without one there is no log.

    Both ends, so that a manager that restarts finds it alive.
    """
    try:
        return os.open("log", os.O_RDWR | os.O_NONBLOCK | os.O_APPEND | os.O_CLOEXEC)
    except OSError:
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def _adjust_oom_score(manager: int) -> None:
    """Let the kernel take the shim before the manager, and containers before both.

    Source: containerd pkg/shim/util_unix.go AdjustOOMScore.
    """
    try:
        score = int(Path(f"/proc/{manager}/oom_score_adj").read_text())
        Path("/proc/self/oom_score_adj").write_text(str(min(score + 1, 1000)))
    except (OSError, ValueError) as exc:
        log.warning("the OOM score stays as it is", error=exc)


def _join_cgroup(invocation: Invocation) -> None:
    """Join the cgroup of the options, which is not made here: nobody would remove it."""
    path = Options.decode(invocation.options).shim_cgroup
    if not path:
        return
    try:
        cgroup = cgroup_at(path)
        if not cgroup.exists():
            raise InvalidError(f"shim_cgroup {path[:200]!r} does not exist: create it first")
        if isinstance(cgroup, CgroupV1):
            # Where it does not exist, the shim stays with the manager.
            there = {name: one for name, one in cgroup.directories.items() if os.path.isdir(one)}  # noqa: PTH112 - the values are plain strings
            cgroup = CgroupV1(there)
        cgroup.add(os.getpid())
    except OSError as exc:
        text = f"the shim cannot join cgroup {path[:200]!r}: {exc.strerror}"
        raise InvalidError(text) from None


def _isolate_core() -> None:
    """Share a core with no one but our containers.

    :raises UnsupportedError: it cannot be had.  Who asked for it relies on it.
    """
    try:
        libc.create_core_cookie()
    except OSError as exc:
        raise UnsupportedError(
            f"SCHED_CORE is set and this machine has no core scheduling ({exc.strerror}): "
            "unset it, or use a kernel with CONFIG_SCHED_CORE and SMT enabled"
        ) from None
