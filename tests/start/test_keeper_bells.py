"""A daemon wakes its keeper by a bell, and by its end."""

from __future__ import annotations

import os
import socket

import pytest

from shim.recovery.inherited import DAEMON, LISTENER
from shim.recovery.messages import BELL, CLAIMED, PUT, encode
from tests.start.keeping import Bench, hang_bell, woken


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
