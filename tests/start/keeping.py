"""A keeper with real channels, pidfds and orphans; a test is its fork server."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from shim.recovery.inherited import DAEMON, LISTENER
from shim.recovery.messages import BELL, EXIT, MAX_MESSAGE, PUT, decode, encode
from shim.start.keeper import Keeper

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shim.start.keptfds import Kept

NAME = "pidfd/c1/"


class Daemon:
    """A process with a channel to a keeper, on which the test sends."""

    def __init__(self, keeper: Keeper) -> None:
        self.process = subprocess.Popen(["sleep", "1000"])
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(10)
        self.keeper = keeper
        self.number = theirs.fileno()
        self._introduce(theirs)

    def _introduce(self, theirs: socket.socket) -> None:
        """Give the keeper the other end of the channel."""
        self.keeper.attach(self.process.pid, theirs)

    def put(self, *names: str, fds: list[int] | None = None) -> None:
        """Leave ``fds``, by default new ones of /dev/null."""
        given = fds or [os.open(os.devnull, os.O_RDONLY) for _ in names]
        socket.send_fds(self.channel, [encode(PUT, *names)], given)
        for fd in given:
            os.close(fd)
        self.keeper.receive(self.number)

    def put_with(self, verb: bytes, fd: int) -> None:
        """Send ``verb`` with ``fd``."""
        socket.send_fds(self.channel, [encode(verb)], [fd])
        os.close(fd)
        self.keeper.receive(self.number)

    def send(self, verb: bytes, *names: str) -> None:
        self.channel.send(encode(verb, *names))
        self.keeper.receive(self.number)

    def exit_of(self, name: str) -> list[str]:
        self.send(EXIT, name)
        verb, words = decode(self.channel.recv(MAX_MESSAGE))
        assert (verb, words[0]) == (EXIT, name)
        return words[1:]

    def die(self) -> None:
        """End with the keeper knowing it as from wait(2)."""
        self.channel.close()
        self.process.kill()
        self.process.wait()
        self.keeper.ended(self.process.pid, signal.SIGKILL)

    def die_unreaped(self) -> None:
        """End; the keeper knows that only by the end of the channel."""
        self.process.kill()
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        self.channel.close()
        self.keeper.receive(self.number)

    def close(self) -> None:
        self.channel.close()
        self.process.kill()
        self.process.wait()


class Guest(Daemon):
    """A process that registers with a keeper which is not its parent."""

    def _introduce(self, theirs: socket.socket) -> None:
        self.pidfd = os.pidfd_open(self.process.pid)
        self.keeper.register(self.process.pid, self.pidfd, theirs)

    def die(self) -> None:
        """End; the keeper finds that by the pidfd, and nobody has reaped the process."""
        self.channel.close()
        self.process.kill()
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        self.keeper.receive(self.pidfd)


class Bench:
    """A keeper, its daemons and those that it has given up."""

    def __init__(self, deaths: int = 3) -> None:
        self.poll = select.poll()
        self.given_up: list[tuple[Kept, str]] = []
        self.keeper = Keeper(self.poll, lambda *one: self.given_up.append(one), deaths)
        self.daemons: list[Daemon] = []

    def daemon(self) -> Daemon:
        self.daemons.append(Daemon(self.keeper))
        return self.daemons[-1]

    def receive(self) -> None:
        """Take the messages that have arrived."""
        while ready := self.poll.poll(0):
            for fd, _ in ready:
                self.keeper.receive(fd)

    def replace(self, kept: Kept) -> Daemon:
        """Give a dead daemon a replacement, as the fork server does."""
        daemon = self.daemon()
        # The channel of a replacement continues the same daemon.
        self.keeper.ended(daemon.process.pid, 0)
        daemon.channel.close()
        daemon.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        daemon.channel.settimeout(10)
        daemon.number = theirs.fileno()
        self.keeper.attach(daemon.process.pid, theirs, kept)
        return daemon

    def dead(self, *names: str) -> Kept:
        """Return a daemon that has died, and had left also ``names``."""
        daemon = self.daemon()
        daemon.put(DAEMON, LISTENER, *names)
        daemon.die()
        [kept] = self.keeper.due()
        return kept


@contextmanager
def orphan(code: int) -> Iterator[tuple[int, int]]:
    """Yield the pid and a pidfd of a process that exits with ``code`` at SIGTERM, a child."""
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(code))
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        while True:
            signal.pause()
    try:
        # Until the handler is there.
        while not os.path.exists(f"/proc/{pid}") or not _catches(pid):  # noqa: PTH110
            time.sleep(0.001)
        yield pid, os.pidfd_open(pid)
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _catches(pid: int) -> bool:
    with open(f"/proc/{pid}/status") as file:
        caught = next(line.split()[1] for line in file if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def end(pid: int) -> None:
    """End ``pid``, which stays a zombie."""
    os.kill(pid, signal.SIGTERM)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def is_zombie(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def is_at_end(reader: int) -> bool:
    return bool(select.select([reader], [], [], 0)[0])


def hang_bell(daemon: Daemon) -> int:
    """Give the keeper a bell of ``daemon``; return the daemon's copy."""
    bell = os.eventfd(0)
    daemon.put_with(BELL, os.dup(bell))
    return bell


def woken(bench: Bench) -> list[int]:
    """Return the fds for which the fork server would wake up."""
    return [fd for fd, _ in bench.poll.poll(0)]
