"""What a child of the fork server does before its action: become what its caller would have.

A spare child is forked before there is a caller.  By the time one comes it has
its own copies of the pages that it writes to, which take a third of a ``start``.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from shim import daemon, delete
from shim.errors import ShimError
from shim.start import actions, bootstrap, launcher
from shim.start.caller import Caller
from shim.start.flags import invocation_of, parse_flags, read_stdin
from shim.text import explain, printable

if TYPE_CHECKING:
    from collections.abc import Iterator


# Seconds for a caller that was told that its call is taken to say go.
_GO_TIMEOUT = 5.0
# Bytes of a call that one packet takes; longer ones do not come from a manager.
_MAX_PACKET = 1 << 16


@dataclass(frozen=True, slots=True)
class Call:
    """What a caller wants, and its fds.

    ``status`` is the connection to it, ``stdin`` its standard input and
    ``caller`` a pidfd of it.
    """

    status: int
    pid: int
    argv: list[str]
    stdin: int
    caller: int


@dataclass(frozen=True, slots=True)
class SpareChild:
    """A child that stands by, seen from the server.  It leaves when ``sock`` is closed."""

    pid: int
    sock: socket.socket

    def send(self, call: Call) -> bool:
        """Say whether it takes ``call``, whose fds are copied.

        If it dies with the call, the caller's connection ends without an answer.
        """
        words = b"\0".join([b"%d" % call.pid, *map(os.fsencode, call.argv)])
        if len(words) > _MAX_PACKET:
            return False
        try:
            socket.send_fds(
                self.sock, [words], [call.status, call.stdin, call.caller], socket.MSG_DONTWAIT
            )
        except OSError:
            return False
        return True


def wait_for_call(sock: socket.socket) -> NoReturn:
    """In a spare child: wait for a call and do it, or leave with the server."""
    _warm_up()
    words, fds, _, _ = socket.recv_fds(sock, _MAX_PACKET, 3)
    sock.close()
    if len(fds) != 3:
        os._exit(0)  # the server is gone; or the call is not whole, and its caller will know
    pid, *argv = words.split(b"\0")
    status, *rest = fds
    run_call(Call(status, int(pid), [os.fsdecode(word) for word in argv], *rest))


def _warm_up() -> None:
    """Write to what a call will write to, and leave no trace."""
    _copy_attributes(os.getpid())
    flags = parse_flags(["-namespace", "warmup", "-id", "nobody", "-bundle", "/nowhere", "start"])
    bootstrap.warm_up(invocation_of(flags, {}, b""))
    daemon.warm_up()
    delete.warm_up()


def run_call(call: Call) -> NoReturn:
    """In the child: be what the caller would have become, and do what it asked for."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    connection = socket.socket(fileno=call.status)
    if not _wait_for_go(connection):
        os._exit(0)
    os.dup2(call.stdin, 0)
    os.close(call.stdin)
    name = Path(call.argv[0]).name
    code, output, errors = 1, b"", b""
    try:
        # The caller waits for us; if it does not any more, so is our purpose gone.
        manager = _copy_attributes(call.pid)
        if not _is_callers_pid(call, connection):
            os._exit(0)
        if call.argv[-1] == "start":
            invocation = invocation_of(parse_flags(call.argv[1:]), os.environ, read_stdin())
            bootstrap.become_daemon(invocation, name, Caller(connection, manager))
        with _captured_output() as captured:
            code = actions.run(name, call.argv[1:])
        output, errors = captured
    except (ShimError, OSError) as exc:
        errors = f"{name}: {printable(explain(exc))}\n".encode()
    with suppress(OSError):  # the caller is gone
        connection.send(launcher.encode_answer(code, output, errors))
    os._exit(0)


def _wait_for_go(connection: socket.socket) -> bool:
    """Offer to do the call; say whether the caller still wants that."""
    own = os.pidfd_open(os.getpid())
    try:
        connection.settimeout(_GO_TIMEOUT)
        socket.send_fds(connection, [b"taken %d" % os.getpid()], [own])
        if connection.recv(16) != b"go":
            return False
    except OSError:
        return False
    finally:
        os.close(own)
    connection.setblocking(True)
    return True


def _is_callers_pid(call: Call, connection: socket.socket) -> bool:
    """Say whether all that was read of process ``call.pid`` was the caller's.

    A pid can be given again.  The pidfd is the caller's own, and the caller was
    alive all the time if it still holds its connection.
    """
    try:
        info = _read(f"/proc/self/fdinfo/{call.caller}")
    finally:
        os.close(call.caller)
    return b"\nPid:\t%d\n" % call.pid in info and not is_closed(connection)


def is_closed(connection: socket.socket) -> bool:
    """Say whether the other end is closed, so that no answer is wanted."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


@contextmanager
def _captured_output() -> Iterator[list[bytes]]:
    """Collect what is written to fds 1 and 2 in the block; it is there after it."""
    captured: list[bytes] = []
    memories = [os.memfd_create(name) for name in ("stdout", "stderr")]
    for number, memory in enumerate(memories, start=1):
        os.dup2(memory, number)
    yield captured
    sys.stdout.flush()
    sys.stderr.flush()
    captured += [os.pread(memory, launcher.MAX_ANSWER, 0) for memory in memories]


def _copy_attributes(pid: int) -> int:
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
