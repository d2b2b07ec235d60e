"""What a child of the fork server does before its action: become what its caller would have."""

from __future__ import annotations

import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from shim import bootstrap
from shim.config import invocation_of, parse_flags, read_stdin
from shim.errors import ShimError

if TYPE_CHECKING:
    from collections.abc import Callable


def become(
    status: int, pid: int, argv: list[str], fds: list[int], run: Callable[[str, list[str]], int]
) -> NoReturn:
    """In the child: be what the caller would have become, and do what it asked for."""
    signal.set_wakeup_fd(-1)
    for caught in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(caught, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    # The caller waits for us, so its pid is its own; if it is gone, so is our purpose.
    os.set_blocking(status, True)
    name = Path(argv[0]).name
    try:
        manager = _take_after(pid)
        if argv[-1] == "start":
            invocation = invocation_of(parse_flags(argv[1:]), os.environ, read_stdin())
            bootstrap.become_daemon(
                invocation, name, bootstrap.Caller(os.dup(1), os.dup(2), status, manager)
            )
        code = run(name, argv[1:])
    except (ShimError, OSError) as exc:
        print(f"{name}: {exc}", file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    for number in (0, 1, 2):
        os.close(number)
    os.write(status, bytes([code]))
    os._exit(0)


def _take_after(pid: int) -> int:
    """Take everything a child of ``pid`` would have inherited from it; return its parent.

    Namespaces, cgroup, capabilities and label are the same by the socket's name.
    """
    root = f"/proc/{pid}"
    entries = _read(f"{root}/environ").split(b"\0")
    pairs = (entry.partition(b"=") for entry in entries if b"=" in entry)
    _set_environment({key: value for key, _, value in pairs if key})
    os.chdir(f"{root}/cwd")
    status = dict(
        line.split(b":\t", 1) for line in _read(f"{root}/status").splitlines() if b":\t" in line
    )
    os.umask(int(status[b"Umask"], 8))
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, pid))
    with suppress(OSError):
        os.sched_setaffinity(0, os.sched_getaffinity(pid))
    for limit in _LIMITS:
        with suppress(OSError, ValueError):
            theirs = resource.prlimit(pid, limit)
            if theirs != resource.getrlimit(limit):
                resource.setrlimit(limit, theirs)
    return int(status[b"PPid"])


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


def _set_environment(wanted: dict[bytes, bytes]) -> None:
    """Make ``wanted`` the environment, most of which the server has from an earlier caller."""
    for key in [key for key in os.environb if key not in wanted]:
        del os.environb[key]
    for key, value in wanted.items():
        if os.environb.get(key) != value:
            os.environb[key] = value


_LIMITS = [value for name, value in vars(resource).items() if name.startswith("RLIMIT_")]
