"""A keeper whose daemons move to another fork server; a test is both servers."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from shim.linux.fdpassing import receive_fds, send_fds
from shim.recovery.inherited import DAEMON, LISTENER, REPORTS
from shim.recovery.messages import (
    DROP,
    EXIT,
    GIVE,
    MAX_FDS,
    MAX_MESSAGE,
    PUT,
    REPLACE,
    SERVING,
    decode,
    encode,
)
from tests.start.keeping import Bench, end, is_at_end, is_zombie, orphan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.start.keeping import Daemon

NAME, CHANNEL = "pidfd/c1/", f"{REPORTS}/0"


class Moved:
    """A daemon that has moved away; the test has its fds, as its new keeper.

    ``channels`` are those on which exits are reported, by name.
    """

    def __init__(self, bench: Bench, daemon: Daemon) -> None:
        self.bench = bench
        self.fds: dict[str, int] = {}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            send_fds(daemon.channel, encode(GIVE), [theirs.fileno()])
            theirs.close()
            bench.keeper.receive(daemon.number)
            ours.settimeout(10)
            while True:
                data, fds, _ = receive_fds(ours, MAX_MESSAGE, MAX_FDS)
                verb, names = decode(data)
                if verb == REPLACE:
                    break
                assert verb == PUT
                self.fds |= dict(zip(names, fds, strict=True))
        self.channels = {
            name: socket.socket(fileno=os.dup(fd))
            for name, fd in self.fds.items()
            if name.startswith(f"{REPORTS}/")
        }
        for channel in self.channels.values():
            channel.setblocking(False)

    def leave(self, daemon: Daemon) -> None:
        """End the daemon, and the replacement of the old server, which is not needed."""
        daemon.die()
        [kept] = self.bench.keeper.due()
        replacement = self.bench.replace(kept)
        self.bench.keeper.ended(replacement.process.pid, 0)

    def send(self, verb: bytes, *words: str, of: str = CHANNEL) -> None:
        self.channels[of].send(encode(verb, *words))
        self.bench.receive()

    def exit_of(self, name: str, of: str = CHANNEL) -> list[str]:
        self.send(EXIT, name, "token", of=of)
        verb, words = decode(self.channels[of].recv(MAX_MESSAGE))
        assert (verb, words[:2]) == (EXIT, [name, "token"])
        return words[2:]

    def is_over(self, of: str = CHANNEL) -> bool:
        """Return whether the server has closed a channel."""
        try:
            return not self.channels[of].recv(1)
        except BlockingIOError:
            return False

    def close(self) -> None:
        for channel in self.channels.values():
            channel.close()
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()
        self.bench.receive()


@contextmanager
def moved(bench: Bench, **fds: int) -> Iterator[Moved]:
    """Yield a daemon that has moved away, and had left copies of ``fds`` as its execs'."""
    daemon = bench.daemon()
    daemon.put(DAEMON, LISTENER)
    for name, fd in fds.items():
        daemon.put(NAME + name, fds=[os.dup(fd)])
    moved = Moved(bench, daemon)
    moved.leave(daemon)
    try:
        yield moved
    finally:
        moved.close()


@contextmanager
def back(bench: Bench, moved: Moved) -> Iterator[Moved]:
    """Move a daemon back to the keeper, and away again."""
    mover = bench.daemon()
    bench.keeper.ended(mover.process.pid, 0)  # it is another server's
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    number = theirs.fileno()
    bench.keeper.welcome(os.pidfd_open(mover.process.pid), theirs)
    send_fds(ours, encode(PUT, *moved.fds), list(moved.fds.values()))
    ours.send(encode(REPLACE))
    ours.close()
    while bench.keeper.receive(number):
        pass
    [kept] = bench.keeper.due()
    moved.close()
    daemon = bench.replace(kept)
    daemon.send(SERVING)
    again = Moved(bench, daemon)
    again.leave(daemon)
    try:
        yield again
    finally:
        again.close()


def test_an_orphan_that_ended_before_the_question_is_reaped_and_reported(bench: Bench) -> None:
    with orphan(7) as (pid, pidfd), moved(bench, e1=pidfd) as daemon:
        end(pid)
        assert bench.keeper.reap(pid)
        assert not is_zombie(pid)
        assert daemon.exit_of(f"{NAME}e1")[0] == str(7 << 8)
        os.close(pidfd)


def test_a_question_of_a_moved_daemon_reaps(bench: Bench) -> None:
    with orphan(7) as (pid, pidfd), moved(bench, e1=pidfd) as daemon:
        assert daemon.exit_of(f"{NAME}e1") == []
        end(pid)
        assert daemon.exit_of(f"{NAME}e1")[0] == str(7 << 8)
        assert not is_zombie(pid)
        os.close(pidfd)


def test_an_exit_is_reported_while_the_replacement_of_the_old_server_waits(bench: Bench) -> None:
    with orphan(7) as (pid, pidfd):
        daemon = bench.daemon()
        daemon.put(DAEMON, LISTENER, NAME, fds=[os.memfd_create("slot"), os.dup(pidfd), pidfd])
        moved = Moved(bench, daemon)
        daemon.die()
        [kept] = bench.keeper.due()
        replacement = bench.replace(kept)
        end(pid)
        assert moved.exit_of(NAME)[0] == str(7 << 8)
        assert replacement.exit_of(NAME) == moved.exit_of(NAME)  # it may have to go on
        moved.close()
        assert replacement.exit_of(NAME)[0] == str(7 << 8)


def test_the_keeper_is_done_when_the_last_pidfd_is_dropped(bench: Bench) -> None:
    with orphan(7) as (pid, pidfd), moved(bench, e1=pidfd) as daemon:
        end(pid)
        bench.keeper.reap(pid)
        assert bench.keeper
        daemon.send(DROP, f"{NAME}e1")
        assert daemon.is_over()
        assert not bench.keeper
        os.close(pidfd)


def test_the_keeper_is_done_when_the_new_server_has_closed_the_channel(bench: Bench) -> None:
    with orphan(7) as (pid, pidfd), moved(bench, e1=pidfd) as daemon:
        before = len(os.listdir("/proc/self/fd"))
        daemon.channels[CHANNEL].close()  # as a replacement that is killed
        bench.receive()
        assert bench.keeper
        daemon.close()
        assert not bench.keeper
        assert len(os.listdir("/proc/self/fd")) < before
        end(pid)
        assert not bench.keeper.reap(pid)
        os.close(pidfd)


def test_the_keeper_is_done_at_once_with_a_daemon_that_leaves_no_orphan(bench: Bench) -> None:
    with moved(bench, e1=(pidfd := os.pidfd_open(os.getppid()))) as daemon:
        assert not bench.keeper
        assert daemon.is_over()
        os.close(pidfd)


def test_only_the_pidfds_of_orphans_stay(bench: Bench) -> None:
    with orphan(7) as (_, pidfd):
        reader, writer = os.pipe()
        with moved(bench, e1=pidfd, output=writer) as daemon:
            os.close(writer)
            os.close(daemon.fds.pop(f"{NAME}output"))
            assert is_at_end(reader)
            assert bench.keeper
        os.close(reader)
        os.close(pidfd)


@pytest.mark.parametrize("message", [encode(PUT, NAME), encode(EXIT, NAME), b"\xff\0\xff", b"x"])
def test_a_message_of_another_kind_ends_the_report(bench: Bench, message: bytes) -> None:
    with orphan(7) as (_, pidfd), moved(bench, e1=pidfd) as daemon:
        daemon.channels[CHANNEL].send(message)
        bench.receive()
        assert daemon.is_over()
        assert not bench.keeper
        os.close(pidfd)


def test_a_daemon_that_could_not_move_goes_on_and_moves_later(bench: Bench) -> None:
    with orphan(7) as (pid, pidfd):
        daemon = bench.daemon()
        daemon.put(DAEMON, LISTENER, NAME, fds=[os.memfd_create("slot"), os.dup(pidfd), pidfd])
        Moved(bench, daemon).close()
        first = Moved(bench, daemon)
        second = Moved(bench, daemon)
        assert first.is_over()
        assert second.channels.keys() == {CHANNEL}
        second.leave(daemon)
        end(pid)
        assert second.exit_of(NAME)[0] == str(7 << 8)
        first.close()
        second.close()
        assert not bench.keeper


def test_a_daemon_that_comes_back_and_leaves_again_has_one_channel_for_its_processes(
    bench: Bench,
) -> None:
    with orphan(7) as (pid, pidfd), ExitStack() as moves:
        daemon = moves.enter_context(moved(bench, e1=pidfd))
        for _ in range(5):
            assert bench.keeper.reported == 1
            daemon = moves.enter_context(back(bench, daemon))
            assert daemon.channels.keys() == {CHANNEL, f"{REPORTS}/1"}
            assert daemon.is_over(f"{REPORTS}/1")
            os.close(daemon.fds.pop(f"{REPORTS}/1"))
        end(pid)
        assert daemon.exit_of(f"{NAME}e1")[0] == str(7 << 8)
        os.close(pidfd)


def test_a_daemon_that_comes_back_has_a_channel_of_its_own_for_its_new_processes(
    bench: Bench,
) -> None:
    """The second has the name of an earlier one that was dropped before it came back."""
    with orphan(7) as (pid, pidfd), orphan(8) as (other, other_fd):
        with moved(bench, e1=pidfd, e2=pidfd) as daemon:
            daemon.channels[CHANNEL].send(encode(DROP, f"{NAME}e2"))
            os.close(daemon.fds[f"{NAME}e2"])
            daemon.fds[f"{NAME}e2"] = other_fd
            with back(bench, daemon) as again:
                end(pid)
                end(other)
                assert again.exit_of(f"{NAME}e1")[0] == str(7 << 8)
                assert again.exit_of(f"{NAME}e2") == []
                assert bench.keeper.reported == 1  # of two channels
                second = f"{REPORTS}/1"
                assert again.exit_of(f"{NAME}e1", second) == []
                assert again.exit_of(f"{NAME}e2", second)[0] == str(8 << 8)
        os.close(pidfd)


def test_daemons_with_the_same_names_have_their_own_exits(bench: Bench) -> None:
    """The ids of containers of two managers may be equal."""
    with orphan(7) as (pid, pidfd), orphan(8) as (other, other_fd):
        with moved(bench, e1=pidfd) as one, moved(bench, e1=other_fd) as two:
            assert (bench.keeper.count, bench.keeper.reported) == (0, 2)
            for ended in (pid, other):
                end(ended)
                assert bench.keeper.reap(ended)
            assert one.exit_of(f"{NAME}e1")[0] == str(7 << 8)
            assert two.exit_of(f"{NAME}e1")[0] == str(8 << 8)
        os.close(pidfd)
        os.close(other_fd)
