"""A keeper with daemons that have registered with it: it is not their parent."""

from __future__ import annotations

import os
import socket

import pytest

from shim.recovery.inherited import DAEMON, LISTENER
from shim.recovery.messages import END, GIVE, encode
from tests.start.keeping import Bench, Daemon, Guest, is_at_end


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
    guest.die_unreaped()
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
