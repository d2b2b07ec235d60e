"""A child of the fork server: it copies its caller's attributes and runs the call.

A spare child is forked before a caller connects, and writes to the pages that a
call writes to.  So the kernel has copied these pages before the call arrives; to
copy them takes a third of the time of a ``start``.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from shim import daemon, delete
from shim.errors import ShimError
from shim.linux.fdpassing import receive, receive_fds, send_fds
from shim.start import actions, bootstrap, launcher
from shim.start.caller import Caller
from shim.start.flags import invocation_of, parse_flags, read_stdin
from shim.text import explain, printable

if TYPE_CHECKING:
    from collections.abc import Iterator


# Seconds from ``taken``, which a child sends, to the caller's ``go``.
_GO_TIMEOUT = 5.0
# Bytes of the longest call that is sent to a spare child; managers send shorter ones.
_MAX_PACKET = 1 << 16


@dataclass(frozen=True, slots=True)
class Call:
    """A caller's arguments, its pid and its fds.

    ``status`` is the connection to the caller, ``stdin`` the caller's standard input
    and ``caller`` a pidfd of the caller.
    """

    status: int
    pid: int
    argv: list[str]
    stdin: int
    caller: int

    @property
    def fds(self) -> tuple[int, int, int]:
        return self.status, self.stdin, self.caller


@dataclass(frozen=True, slots=True)
class SpareChild:
    """A child that waits for a call.  It exits when the server closes ``sock``."""

    pid: int
    sock: socket.socket

    def send(self, call: Call) -> bool:
        """Send ``call`` and copies of its fds; return whether the child can receive it.

        If the child dies with the call, the caller's connection ends without an answer.
        """
        words = b"\0".join([b"%d" % call.pid, *map(os.fsencode, call.argv)])
        if len(words) > _MAX_PACKET:
            return False
        try:
            send_fds(self.sock, words, call.fds, socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True


def wait_for_call(server: str, sock: socket.socket) -> NoReturn:
    """In a spare child: wait for a call and run it, or exit when the server ends.

    ``server`` is the name of the server's socket.
    """
    warm_up()
    words, fds, _ = receive_fds(sock, _MAX_PACKET, 3)
    if len(fds) != 3:
        # The server has ended, or fds are missing: then the caller sees its connection end.
        os._exit(0)
    pid, *argv = words.split(b"\0")
    status, *rest = fds
    run_call(Call(status, int(pid), [os.fsdecode(word) for word in argv], *rest), server, sock)


def warm_up() -> None:
    """Write to the pages that a call writes to; change no file and no other process.

    The server runs this too before it forks, so that the code is specialised by then.
    """
    _copy_attributes(os.getpid())
    flags = parse_flags(["-namespace", "warmup", "-id", "nobody", "-bundle", "/nowhere", "start"])
    bootstrap.warm_up(invocation_of(flags, {}, b""))
    daemon.warm_up()
    delete.warm_up()


def run_call(call: Call, server: str, channel: socket.socket) -> NoReturn:
    """In the child: take on the caller's attributes, run the call, answer and exit.

    ``server`` is the name of the server's socket, ``channel`` a connection to it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    connection = socket.socket(fileno=call.status)
    if not _wait_for_go(connection):
        os._exit(0)
    os.dup2(call.stdin, 0)
    os.close(call.stdin)
    name = Path(call.argv[0]).name
    code, output, errors = 1, b"", b""
    try:
        manager = _copy_attributes(call.pid)
        if not _is_callers_pid(call, connection):
            os._exit(0)
        if call.argv[-1] == "start":
            invocation = invocation_of(parse_flags(call.argv[1:]), os.environ, read_stdin())
            bootstrap.become_daemon(invocation, name, Caller(connection, manager), server, channel)
        channel.close()
        with _captured_output() as captured:
            deadline = time.monotonic() + launcher.WORK[call.argv[-1]]
            code = actions.run(name, call.argv[1:], deadline)
        output, errors = captured
    except (ShimError, OSError) as exc:
        errors = f"{name}: {printable(explain(exc))}\n".encode()
    with suppress(OSError):  # the caller has ended
        connection.send(launcher.encode_answer(code, output, errors))
    os._exit(0)


def _wait_for_go(connection: socket.socket) -> bool:
    """Send ``taken`` and a pidfd of this process; return whether the caller sent ``go``."""
    own = os.pidfd_open(os.getpid())
    try:
        connection.settimeout(_GO_TIMEOUT)
        send_fds(connection, b"taken %d" % os.getpid(), [own])
        if receive(connection, 16) != b"go":
            return False
    except OSError:
        return False
    finally:
        os.close(own)
    connection.setblocking(True)
    return True


def _is_callers_pid(call: Call, connection: socket.socket) -> bool:
    """Return whether the attributes that were read of ``call.pid`` are the caller's.

    The kernel can give a pid to a new process.  The pidfd identifies the caller, and
    while the caller holds its end of the connection it is alive and keeps its pid.
    """
    try:
        info = _read(f"/proc/self/fdinfo/{call.caller}")
    finally:
        os.close(call.caller)
    return b"\nPid:\t%d\n" % call.pid in info and not is_closed(connection)


def is_closed(connection: socket.socket) -> bool:
    """Return whether the other end of ``connection`` is closed."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


@contextmanager
def _captured_output() -> Iterator[list[bytes]]:
    """Capture the output to fds 1 and 2 in the block.

    After the block the list holds the bytes of each, at most :data:`launcher.MAX_ANSWER`.
    """
    captured: list[bytes] = []
    memories = [os.memfd_create(name) for name in ("stdout", "stderr")]
    for number, memory in enumerate(memories, start=1):
        os.dup2(memory, number)
    yield captured
    sys.stdout.flush()
    sys.stderr.flush()
    captured += [os.pread(memory, launcher.MAX_ANSWER, 0) for memory in memories]


def _copy_attributes(pid: int) -> int:
    """Copy the attributes that a child of ``pid`` would inherit; return the parent of ``pid``.

    Namespaces, cgroup, capabilities and security label need no copy: they are a part of
    the name of the server's socket (:mod:`shim.start.identity`), so they are equal.
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
    """Make ``wanted`` the environment.

    Only differences are written, since most variables are those of the server's first
    caller.
    """
    for key in [key for key in os.environb if key not in wanted]:
        del os.environb[key]
    for key, value in wanted.items():
        if os.environb.get(key) != value:
            os.environb[key] = value


_LIMITS = [value for name, value in vars(resource).items() if name.startswith("RLIMIT_")]
