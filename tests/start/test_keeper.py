"""The keeper with real channels, pidfds and orphans; a test is its fork server."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from shim.recovery.inherited import DAEMON, LISTENER
from shim.recovery.messages import (
    BELL,
    CLAIMED,
    DROP,
    END,
    EXIT,
    GIVE,
    MAX_MESSAGE,
    PUT,
    REPLACE,
    SERVING,
    decode,
    encode,
)
from shim.recovery.slot import StateSlot
from shim.recovery.turn import Claim, Turn
from shim.start import keeper as keeper_module
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
        keeper.attach(self.process.pid, theirs)

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

    def close(self) -> None:
        self.channel.close()
        self.process.kill()
        self.process.wait()


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


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    for daemon in bench.daemons:
        daemon.close()
        bench.keeper.ended(daemon.process.pid, 0)


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


def test_a_copy_is_kept_until_it_is_dropped_and_no_program_inherits_it(bench: Bench) -> None:
    daemon = bench.daemon()
    reader, writer = os.pipe()
    daemon.put("io/c1//stdout", fds=[writer])
    [kept] = bench.keeper._all
    assert not is_at_end(reader)
    assert fcntl.fcntl(kept.fds["io/c1//stdout"], fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    daemon.send(DROP, "io/c1//stdout", "unknown", "io/c1//stdout")
    assert is_at_end(reader)
    os.close(reader)


def test_a_copy_replaces_that_of_the_same_name(bench: Bench) -> None:
    daemon = bench.daemon()
    reader, writer = os.pipe()
    daemon.put("one", "other", fds=[writer, os.open(os.devnull, os.O_RDONLY)])
    daemon.put("one")
    assert is_at_end(reader)
    os.close(reader)


@pytest.mark.parametrize(
    "message",
    [
        encode(PUT, "one", "two"),  # with one fd
        encode(GIVE),  # a pipe, which is no socket
        encode(DROP, "one"),
        encode(BELL, "one"),
        encode(b"unknown"),
        b"put\0\xff",
    ],
)
def test_a_malformed_message_ends_the_deposit_of_its_daemon_only(
    bench: Bench, message: bytes
) -> None:
    other, daemon = bench.daemon(), bench.daemon()
    ends = [os.pipe() for _ in range(3)]
    other.put("one", fds=[ends[0][1]])
    daemon.put("one", fds=[ends[1][1]])
    socket.send_fds(daemon.channel, [message], [ends[2][1]])
    os.close(ends[2][1])
    bench.keeper.receive(daemon.number)
    assert [is_at_end(reader) for reader, _ in ends] == [False, True, True]
    assert daemon.channel.recv(1) == b""
    assert bench.keeper
    for reader, _ in ends:
        os.close(reader)


def test_a_message_with_one_name_twice_ends_the_deposit_and_closes_both_copies(
    bench: Bench,
) -> None:
    daemon = bench.daemon()
    (first, one), (second, other) = os.pipe(), os.pipe()
    daemon.put("a", "a", fds=[one, other])
    assert is_at_end(first)
    assert is_at_end(second)
    assert not bench.keeper
    os.close(first)
    os.close(second)


def test_a_daemon_that_moves_without_a_state_is_forgotten(bench: Bench) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader, writer = os.pipe()  # no file in memory: a count cannot be read from it
    with ours:
        bench.keeper.welcome(os.pidfd_open(os.getpid()), theirs)
        socket.send_fds(ours, [encode(PUT, DAEMON, LISTENER)], [writer, writer])
        os.close(writer)
        ours.send(encode(REPLACE))
        while bench.keeper.receive(theirs.fileno()):
            pass
    assert is_at_end(reader)
    assert not bench.keeper
    os.close(reader)


def test_a_daemon_that_closes_its_channel_and_lives_on_has_its_copies_closed(
    bench: Bench,
) -> None:
    daemon = bench.daemon()
    reader, writer = os.pipe()
    daemon.put("one", fds=[writer])
    daemon.channel.close()
    bench.keeper.receive(daemon.number)
    assert is_at_end(reader)
    assert not bench.keeper
    os.close(reader)


def test_a_killed_daemon_closes_its_channel_before_it_is_reaped_and_keeps_its_copies(
    bench: Bench,
) -> None:
    daemon = bench.daemon()
    daemon.put(DAEMON, LISTENER)
    daemon.process.kill()
    os.waitid(os.P_PID, daemon.process.pid, os.WEXITED | os.WNOWAIT)
    daemon.channel.close()
    bench.keeper.receive(daemon.number)
    assert bench.keeper.due() == []
    bench.keeper.ended(daemon.process.pid, signal.SIGKILL)
    [kept] = bench.keeper.due()
    assert kept.fds.keys() == {DAEMON, LISTENER}


def test_a_daemon_that_cannot_end_because_of_a_thread_is_replaced_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread may wait for a disk that hangs: the daemon is not reaped until it returns."""
    monkeypatch.setattr(keeper_module, "_ENDING", 0.0)
    daemon = bench.daemon()
    daemon.put(DAEMON, LISTENER)
    daemon.process.kill()
    os.waitid(os.P_PID, daemon.process.pid, os.WEXITED | os.WNOWAIT)
    daemon.channel.close()
    bench.keeper.receive(daemon.number)
    bench.keeper.expire()
    [kept] = bench.keeper.due()
    replacement = bench.replace(kept)
    bench.keeper.ended(daemon.process.pid, signal.SIGKILL)  # much later
    replacement.put("one")
    assert "one" in kept.fds


def test_messages_that_a_killed_daemon_has_sent_are_read_before_it_is_replaced(
    bench: Bench,
) -> None:
    daemon = bench.daemon()
    null = os.open(os.devnull, os.O_RDONLY)
    for names in ((DAEMON,), (LISTENER,), ("one",)):
        socket.send_fds(daemon.channel, [encode(PUT, *names)], [null])
    os.close(null)
    daemon.die()
    [kept] = bench.keeper.due()
    assert kept.fds.keys() == {DAEMON, LISTENER, "one"}


def test_a_daemon_that_ends_with_0_or_has_given_no_address_is_not_replaced(bench: Bench) -> None:
    daemon = bench.daemon()
    daemon.put(DAEMON, LISTENER)
    bench.keeper.ended(daemon.process.pid, 0)
    other = bench.daemon()
    other.put(DAEMON)
    bench.keeper.ended(other.process.pid, signal.SIGKILL)
    assert bench.keeper.due() == []
    assert not bench.keeper


@pytest.mark.parametrize(("code", "status"), [(7, 7 << 8), (0, 0)])
def test_an_orphan_is_reaped_and_its_exit_told_until_its_pidfd_is_dropped(
    bench: Bench, code: int, status: int
) -> None:
    with orphan(code) as (pid, pidfd):
        daemon = bench.daemon()
        daemon.put(DAEMON, LISTENER, NAME, fds=[*(os.dup(pidfd) for _ in range(2)), pidfd])
        daemon.die()
        [kept] = bench.keeper.due()
        replacement = bench.replace(kept)
        assert replacement.exit_of(NAME) == []
        before = time.time_ns()
        end(pid)
        assert bench.keeper.reap(pid)
        assert not is_zombie(pid)
        for _ in range(2):
            told = [int(word) for word in replacement.exit_of(NAME)]
            assert told[0] == status
            assert before <= told[1] <= time.time_ns()
        replacement.send(DROP, NAME)
        assert replacement.exit_of(NAME) == []


def test_a_question_for_an_exit_reaps(bench: Bench) -> None:
    with orphan(7) as (pid, pidfd):
        daemon = bench.daemon()
        daemon.put(NAME, fds=[pidfd])
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert daemon.exit_of(NAME)[0] == str(int(signal.SIGKILL))
        assert not is_zombie(pid)


def test_what_is_no_pidfd_and_no_child_has_no_exit(bench: Bench) -> None:
    daemon = bench.daemon()
    daemon.put("null", "init", fds=[os.open(os.devnull, os.O_RDONLY), os.pidfd_open(1)])
    for name in ("null", "init", "unknown"):
        assert daemon.exit_of(name) == []


def test_an_orphan_without_a_pidfd_is_not_the_keepers(bench: Bench) -> None:
    bench.dead("one")
    with orphan(7) as (pid, pidfd):
        os.close(pidfd)
        end(pid)
        assert not bench.keeper.reap(pid)
        assert is_zombie(pid)


def test_orphans_wait_until_a_replacement_has_claimed_its_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    replacement = bench.replace(bench.dead())
    assert bench.keeper.has_claims
    replacement.send(CLAIMED)
    assert not bench.keeper.has_claims
    monkeypatch.setattr(keeper_module, "_CLAIM", 0.0)
    bench.replace(bench.dead())
    bench.keeper.expire()
    assert not bench.keeper.has_claims
    assert bench.keeper.deadlines == []


def test_the_third_death_in_a_minute_is_the_last_and_closes_everything(bench: Bench) -> None:
    reader, writer = os.pipe()
    daemon = bench.daemon()
    null = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]
    daemon.put(DAEMON, LISTENER, "one", fds=[*null, writer])
    for _ in range(2):
        daemon.die()
        [kept] = bench.keeper.due()
        daemon = bench.replace(kept)
    assert not is_at_end(reader)
    daemon.die()
    assert bench.keeper.due() == []
    assert [reason for _, reason in bench.given_up] == ["it died 3 times in 60 seconds"]
    assert is_at_end(reader)
    assert not bench.keeper
    os.close(reader)


def test_deaths_of_more_than_a_minute_ago_do_not_count(bench: Bench) -> None:
    kept = bench.dead()
    for _ in range(5):
        kept.deaths = [one - keeper_module.PERIOD for one in kept.deaths]
        bench.replace(kept).die()
        assert bench.keeper.due() == [kept]
    assert bench.given_up == []


def test_a_replacement_that_cannot_be_forked_is_tried_again_and_then_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "_FORK_PAUSE", 0.0)
    monkeypatch.setattr(keeper_module, "_FORK_ATTEMPTS", 3)
    kept = bench.dead()
    for _ in range(2):
        bench.keeper.postpone(kept)
        assert bench.keeper.due() == [kept]
    bench.keeper.postpone(kept)
    assert bench.keeper.due() == []
    assert [reason for _, reason in bench.given_up] == ["no process can be forked"]
    assert not bench.keeper


def test_ten_thousand_puts_and_drops_leave_nothing(bench: Bench) -> None:
    daemon = bench.daemon()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(10_000):
        daemon.put(f"io/c{number}//stdout")
        daemon.send(DROP, f"io/c{number}//stdout")
    assert len(os.listdir("/proc/self/fd")) == before


def hang_bell(daemon: Daemon) -> int:
    """Give the keeper a bell of ``daemon``; return the daemon's copy."""
    bell = os.eventfd(0)
    daemon.put_with(BELL, os.dup(bell))
    return bell


def woken(bench: Bench) -> list[int]:
    """Return the fds for which the fork server would wake up."""
    return [fd for fd, _ in bench.poll.poll(0)]


def test_a_message_of_a_daemon_with_a_bell_wakes_nothing_until_the_bell_is_rung(
    bench: Bench,
) -> None:
    daemon = bench.daemon()
    bell = hang_bell(daemon)
    for name in ("one", "other"):
        with open(os.devnull) as file:
            socket.send_fds(daemon.channel, [encode(PUT, name)], [file.fileno()])
    [kept] = bench.keeper._all
    assert woken(bench) == []
    os.eventfd_write(bell, 1)
    assert woken(bench) == [kept.bell]
    assert bench.keeper.receive(kept.bell)
    assert kept.fds.keys() == {"one", "other"}
    assert woken(bench) == []
    os.close(bell)


def test_the_end_of_a_daemon_with_a_bell_wakes_and_its_messages_are_read(bench: Bench) -> None:
    daemon = bench.daemon()
    bell = hang_bell(daemon)
    null = os.open(os.devnull, os.O_RDONLY)
    for names in ((DAEMON,), (LISTENER,), ("one",)):
        socket.send_fds(daemon.channel, [encode(PUT, *names)], [null])
    os.close(null)
    assert woken(bench) == []
    daemon.channel.close()
    assert woken(bench) == [daemon.number]
    daemon.die()
    [kept] = bench.keeper.due()
    assert kept.fds.keys() == {DAEMON, LISTENER, "one"}
    assert woken(bench) == []
    os.close(bell)


def test_a_replacement_has_a_bell_of_its_own(bench: Bench) -> None:
    daemon = bench.daemon()
    daemon.put(DAEMON, LISTENER)
    before = hang_bell(daemon)
    daemon.die()
    [kept] = bench.keeper.due()
    replacement = bench.replace(kept)
    bell = hang_bell(replacement)
    os.eventfd_write(before, 1)
    assert woken(bench) == []
    replacement.channel.send(encode(CLAIMED))
    os.eventfd_write(bell, 1)
    [fd] = woken(bench)
    bench.keeper.receive(fd)
    assert not bench.keeper.has_claims
    os.close(before)
    os.close(bell)


@pytest.mark.parametrize("path", [os.curdir, os.devnull])
def test_a_bell_that_is_no_eventfd_cannot_stop_the_keeper(bench: Bench, path: str) -> None:
    daemon = bench.daemon()
    daemon.put_with(BELL, os.open(path, os.O_RDONLY))
    [kept] = bench.keeper._all
    bench.keeper.receive(kept.bell)
    assert woken(bench) == []
    assert not bench.keeper


def test_what_a_daemon_left_before_it_ended_with_an_answer_unread_is_kept(bench: Bench) -> None:
    daemon = bench.daemon()
    daemon.put(DAEMON, LISTENER, NAME)
    daemon.send(EXIT, NAME)  # its answer stays unread, so the kernel reports a reset
    names = [f"conn/{number}" for number in range(5)]
    for name in names:
        with open(os.devnull) as file:
            socket.send_fds(daemon.channel, [encode(PUT, name)], [file.fileno()])
    daemon.die()
    [kept] = bench.keeper.due()
    assert kept.fds.keys() == {DAEMON, LISTENER, NAME, *names}


@contextmanager
def moved(bench: Bench) -> Iterator[tuple[Kept, StateSlot]]:
    """Move a daemon to the keeper; yield it, with its replacement due, and its state slot."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mover = subprocess.Popen(["sleep", "1000"])
    bench.keeper.welcome(os.pidfd_open(mover.pid), theirs)
    slot = StateSlot.new()
    with ours, socket.socket(socket.AF_UNIX) as listener:
        socket.send_fds(ours, [encode(PUT, DAEMON, LISTENER)], [slot.fd, listener.fileno()])
        ours.send(encode(REPLACE))
        while bench.keeper.receive(theirs.fileno()):
            pass
        [kept] = bench.keeper.due()
        yield kept, slot
    mover.kill()
    mover.wait()
    slot.close()


def test_a_moved_daemon_killed_before_it_could_tell_that_it_served_is_replaced(
    bench: Bench,
) -> None:
    """It has counted itself, so the server that it came from does not replace it."""
    with moved(bench) as (kept, slot):
        first = bench.replace(kept)
        Turn(slot.fd, kept.claim).serve()
        first.die()
        assert bench.keeper.due() == [kept]
        second = bench.replace(kept)
        second.send(SERVING)
        second.die()
        assert bench.keeper.due() == [kept]


def test_a_moved_daemon_that_never_served_is_left_to_the_other_server(bench: Bench) -> None:
    with moved(bench) as (kept, _):
        bench.replace(kept).die()
        assert bench.keeper.due() == []


def test_a_moved_daemon_that_the_other_server_has_replaced_is_left_to_it(bench: Bench) -> None:
    """Both servers have counted; this one finds the end of its own replacement late."""
    with moved(bench) as (kept, slot):
        first = bench.replace(kept)
        Turn(slot.fd, Claim.new()).serve()
        first.die()
        assert bench.keeper.due() == []


class Guest(Daemon):
    """A process that registers with a keeper which is not its parent."""

    def __init__(self, keeper: Keeper) -> None:
        self.process = subprocess.Popen(["sleep", "1000"])
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(10)
        self.keeper = keeper
        self.number = theirs.fileno()
        self.pidfd = os.pidfd_open(self.process.pid)
        keeper.register(self.process.pid, self.pidfd, theirs)

    def die(self) -> None:
        """End; the keeper finds that by the pidfd, and nobody has reaped the process."""
        self.channel.close()
        self.process.kill()
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        self.keeper.receive(self.pidfd)


def test_a_guest_that_is_killed_is_replaced_and_its_orphans_are_its_parents(bench: Bench) -> None:
    guest = Guest(bench.keeper)
    bench.daemons.append(guest)
    assert bench.keeper.guests == 1
    assert bench.keeper.keeps(guest.process.pid)
    guest.put(LISTENER, DAEMON)
    guest.die()
    [kept] = bench.keeper.due()
    assert kept.parent == os.getpid()
    assert bench.keeper.guests == 0
    replacement = bench.replace(kept)
    replacement.put("one")
    assert kept.fds.keys() == {DAEMON, LISTENER, "one"}


def test_a_guest_whose_channel_ends_first_is_replaced_when_its_pidfd_tells(bench: Bench) -> None:
    guest = Guest(bench.keeper)
    bench.daemons.append(guest)
    guest.put(LISTENER, DAEMON)
    guest.process.kill()
    os.waitid(os.P_PID, guest.process.pid, os.WEXITED | os.WNOWAIT)
    guest.channel.close()
    bench.keeper.receive(guest.number)
    assert bench.keeper.due() == []
    bench.keeper.receive(guest.pidfd)
    assert len(bench.keeper.due()) == 1


def test_a_guest_that_has_not_left_everything_is_not_replaced(bench: Bench) -> None:
    guest = Guest(bench.keeper)
    bench.daemons.append(guest)
    reader, writer = os.pipe()
    guest.put(LISTENER, "one", fds=[os.open(os.devnull, os.O_RDONLY), writer])
    guest.die()
    assert bench.keeper.due() == []
    assert is_at_end(reader)
    assert not bench.keeper
    os.close(reader)


@pytest.mark.parametrize("kind", [Daemon, Guest])
def test_a_daemon_that_ends_on_purpose_is_not_replaced(bench: Bench, kind: type[Daemon]) -> None:
    daemon = kind(bench.keeper)
    bench.daemons.append(daemon)
    daemon.put(LISTENER, DAEMON)
    daemon.send(END)
    assert not bench.keeper
    daemon.die()
    assert bench.keeper.due() == []


def test_the_last_message_of_a_guest_may_be_read_after_its_death(bench: Bench) -> None:
    guest = Guest(bench.keeper)
    bench.daemons.append(guest)
    guest.put(LISTENER, DAEMON)
    guest.channel.send(encode(END))
    guest.die()
    assert not bench.keeper
    assert bench.keeper.due() == []


def test_a_guest_that_closes_its_channel_and_lives_on_is_forgotten(bench: Bench) -> None:
    guest = Guest(bench.keeper)
    bench.daemons.append(guest)
    guest.put(LISTENER, DAEMON)
    guest.channel.close()
    bench.keeper.receive(guest.number)
    assert not bench.keeper
    assert bench.keeper.guests == 0


def test_the_end_of_a_guest_that_moves_counts_as_no_death(bench: Bench) -> None:
    guest = Guest(bench.keeper)
    bench.daemons.append(guest)
    guest.put(LISTENER, DAEMON)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        socket.send_fds(guest.channel, [encode(GIVE)], [theirs.fileno()])
        bench.keeper.receive(guest.number)
    guest.die()
    [kept] = bench.keeper.due()
    assert kept.deaths == []
    assert kept.reporter is not None
    bench.keeper.receive(kept.reporter.channel.fileno())
    assert not kept.reporter.is_open


def test_a_keeper_that_ends_on_purpose_tells_its_daemons(bench: Bench) -> None:
    daemon = bench.daemon()
    bench.keeper.take_leave()
    assert decode(daemon.channel.recv(MAX_MESSAGE)) == (END, [])
