"""Fds over unix sockets: without waiting, and not for programs that are started later."""

from __future__ import annotations

import fcntl
import os
import socket

import pytest

from shim.linux.fdpassing import receive, receive_fds, send_fds
from tests.latesocket import late_pair


def test_received_fds_are_the_files_and_are_close_on_exec() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open(os.devnull) as null:
        send_fds(ours, b"data", [null.fileno(), ours.fileno()])
        data, fds, flags = receive_fds(theirs, 100, 2)
        assert (data, flags & socket.MSG_CTRUNC) == (b"data", 0)
        for fd, sent in zip(fds, (null.fileno(), ours.fileno()), strict=True):
            assert os.path.sameopenfile(fd, sent)
            assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            os.close(fd)


def test_fds_beyond_the_room_are_closed_and_reported() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open(os.devnull) as null:
        send_fds(ours, b"data", 5 * [null.fileno()])
        before = len(os.listdir("/proc/self/fd"))
        _, fds, flags = receive_fds(theirs, 100, 1)
        assert len(fds) == 1
        assert flags & socket.MSG_CTRUNC
        os.close(fds[0])
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_send_does_not_wait_for_room_if_it_is_told_so() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def fill() -> None:
        for _ in range(10_000):
            send_fds(ours, 1000 * b"x", [ours.fileno()], socket.MSG_DONTWAIT)

    with ours, theirs, pytest.raises(BlockingIOError):
        fill()


@pytest.mark.parametrize("is_unread", [False, True], ids=["all-read", "unread"])
def test_an_empty_answer_before_the_last_message_is_not_the_end(*, is_unread: bool) -> None:
    """A message that the peer has not read makes an error come between the two."""
    ours, theirs = late_pair()
    with ours:
        with theirs:
            theirs.send(b"last")
            if is_unread:
                ours.send(b"unread")
        assert receive(ours, 100) == b"last"
        assert receive(ours, 100) == b""


def test_an_empty_answer_before_the_last_fds_is_not_the_end() -> None:
    ours, theirs = late_pair()
    with ours:
        with theirs, open(os.devnull) as null:
            send_fds(theirs, b"last", [null.fileno()])
        data, [fd], _ = receive_fds(ours, 100, 1)
        assert data == b"last"
        os.close(fd)
        assert receive_fds(ours, 100, 1)[:2] == (b"", [])


def test_an_empty_message_is_not_waited_after() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for _ in range(2):
            theirs.send(b"")
        theirs.send(b"next")
        assert [receive(ours, 100), receive(ours, 100)] == [b"", b"next"]
        theirs.send(b"")
        assert receive_fds(ours, 100, 1)[:2] == (b"", [])
