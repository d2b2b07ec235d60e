"""The keeper with real channels, pidfds and orphans; a test is its fork server."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket

import pytest

from shim.recovery.inherited import DAEMON, LISTENER
from shim.recovery.messages import (
    BELL,
    DROP,
    END,
    EXIT,
    GIVE,
    MAX_MESSAGE,
    PUT,
    REPLACE,
    decode,
    encode,
)
from shim.start import keeper as keeper_module
from shim.start import replacement
from tests.latesocket import late
from tests.start.keeping import NAME, Bench, Daemon, is_at_end


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


def test_the_last_fds_of_a_daemon_are_kept_after_an_empty_answer(bench: Bench) -> None:
    class LateDaemon(Daemon):
        def _introduce(self, theirs: socket.socket) -> None:
            self.keeper.attach(self.process.pid, late(theirs))

    bench.daemons.append(daemon := LateDaemon(bench.keeper))
    daemon.put(DAEMON, LISTENER)
    daemon.die()
    [kept] = bench.keeper.due()
    assert kept.fds.keys() == {DAEMON, LISTENER}


def test_a_file_system_that_reports_an_error_at_close_costs_no_other_fd(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = bench.daemon()
    daemon.put("spool", "spool2", "other")
    [kept] = bench.keeper._all
    failing = {kept.fds["spool"], kept.fds["spool2"]}
    close = os.close

    def close_with_error(fd: int) -> None:
        close(fd)
        if fd in failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close_with_error)
        daemon.send(DROP, "spool")
        assert kept.fds.keys() == {"spool2", "other"}
        daemon.send(END)
    assert not kept.fds
    assert not bench.keeper


def test_an_error_at_close_does_not_stop_a_replacement() -> None:
    file, other = (os.open(os.devnull, os.O_RDONLY) for _ in range(2))
    if not (pid := os.fork()):
        status = 1
        try:  # it gives fds the lowest numbers, which are those of other files in this process
            close = os.close

            def close_with_error(fd: int) -> None:
                close(fd)
                raise OSError(errno.EIO, os.strerror(errno.EIO))

            os.close = close_with_error
            high = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 500)
            moved, _ = replacement._renumber({"spool": high}, socket.socket())
            status = int(not os.path.sameopenfile(moved["spool"], other))
        finally:
            os._exit(status)
    os.close(file)
    os.close(other)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_an_error_at_close_is_not_one_of_the_fork_server(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = bench.daemon()
    close = os.close

    def close_with_error(fd: int) -> None:
        close(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with open(os.devnull) as null:
        socket.send_fds(daemon.channel, [encode(DROP, "a")], [null.fileno()])  # is malformed
        with monkeypatch.context() as patch:
            patch.setattr(os, "close", close_with_error)
            daemon.keeper.receive(daemon.number)
    assert not bench.keeper


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
    daemon.die_unreaped()
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
    daemon.die_unreaped()
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


def test_a_keeper_that_ends_on_purpose_tells_its_daemons(bench: Bench) -> None:
    daemon = bench.daemon()
    bench.keeper.take_leave()
    assert decode(daemon.channel.recv(MAX_MESSAGE)) == (END, [])
