"""A daemon ends if the caller of ``start`` ended without the address, and only then."""

from __future__ import annotations

import socket

import pytest

from shim.start.caller import Caller
from tests.latesocket import late_pair


@pytest.mark.parametrize("late", [b"", b"child 7"], ids=["all-read", "packet-unread"])
@pytest.mark.parametrize("told", [True, False])
async def test_the_last_packet_of_a_caller_that_has_ended_counts(
    late: bytes, *, told: bool
) -> None:
    daemon, caller = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with caller:
        if late:  # the fork server sends it through the daemon's end of the connection
            daemon.send(late)
        if told:
            caller.send(b"told")
    assert await Caller(daemon, 1).wait_acknowledged() is told


async def test_the_last_packet_of_a_caller_counts_after_an_empty_answer() -> None:
    daemon, caller = late_pair()
    with caller:
        caller.send(b"told")
    assert await Caller(daemon, 1).wait_acknowledged()
