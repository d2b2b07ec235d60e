"""What a child of the fork server does before its action: become what its caller would have.

A spare child is forked before there is a caller.  By the time one comes it has
its own copies of the pages that it writes to, which take a third of a ``start``.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from shim import bootstrap, cleanup, daemon
from shim.config import invocation_of, parse_flags, read_stdin
from shim.errors import ShimError
from shim.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable


# Bytes of a call that one packet takes; longer ones do not come from a manager.
_PACKET = 1 << 16


@dataclass(frozen=True, slots=True)
class Call:
    """What a caller wants: its fds 0, 1 and 2, and ``status``, where it waits for a byte."""

    status: int
    pid: int
    argv: list[str]
    fds: list[int]


@dataclass(frozen=True, slots=True)
class Spare:
    """A child that stands by, seen from the server.  It leaves when ``sock`` is closed."""

    pid: int
    sock: socket.socket

    def take(self, call: Call) -> bool:
        """Say whether it takes ``call``, whose fds are copied.

        If it dies with the call, the caller's connection ends without an answer.
        """
        words = b"\0".join([b"%d" % call.pid, *map(os.fsencode, call.argv)])
        if len(words) > _PACKET:
            return False
        try:
            socket.send_fds(self.sock, [words], [call.status, *call.fds], socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True


def stand_by(sock: socket.socket, run: Callable[[str, list[str]], int]) -> NoReturn:
    """In a spare child: wait for a call and do it, or leave with the server."""
    _rehearse()
    words, fds, _, _ = socket.recv_fds(sock, _PACKET, 4)
    sock.close()
    if len(fds) != 4:
        os._exit(0)  # the server is gone; or the call is not whole, and its caller will know
    pid, *argv = words.split(b"\0")
    status, *rest = fds
    become(Call(status, int(pid), [os.fsdecode(word) for word in argv], rest), run)


def _rehearse() -> None:
    """Write to what a call will write to, and leave no trace."""
    _take_after(os.getpid())
    flags = parse_flags(
        ["-namespace", "rehearsal", "-id", "nobody", "-bundle", "/nowhere", "start"]
    )
    bootstrap.rehearse(invocation_of(flags, {}, b""))
    daemon.rehearse_birth()
    cleanup.rehearse()


def become(call: Call, run: Callable[[str, list[str]], int]) -> NoReturn:
    """In the child: be what the caller would have become, and do what it asked for."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, fd in enumerate(call.fds):
        os.dup2(fd, number)
    for fd in call.fds:
        # The manager waits for the last holder of its pipe.
        os.close(fd)
    os.set_blocking(call.status, True)
    name = Path(call.argv[0]).name
    try:
        # The caller waits for us, so its pid is its own; if it is gone, so is our purpose.
        manager = _take_after(call.pid)
        if call.argv[-1] == "start":
            invocation = invocation_of(parse_flags(call.argv[1:]), os.environ, read_stdin())
            bootstrap.become_daemon(
                invocation, name, bootstrap.Caller(os.dup(1), os.dup(2), call.status, manager)
            )
        code = run(name, call.argv[1:])
    except (ShimError, OSError) as exc:
        print(f"{name}: {printable(str(exc))}", file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    for number in (0, 1, 2):
        os.close(number)
    os.write(call.status, bytes([code]))
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
        line.split(b":\t", 1) for line in _read(f"{root}/status").split(b"\n") if b":\t" in line
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
