"""A keeper with a daemon that has moved to it."""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shim.recovery.inherited import DAEMON, LISTENER
from shim.recovery.messages import PUT, REPLACE, SERVING, encode
from shim.recovery.slot import StateSlot
from shim.recovery.turn import Claim, Turn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shim.start.keptfds import Kept
    from tests.start.keeping import Bench


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
