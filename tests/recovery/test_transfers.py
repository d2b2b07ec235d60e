"""Counts of received and sent bytes that another process finds in a file."""

from __future__ import annotations

import mmap
import os
import random
import socket
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from shim.recovery.transfers import CHUNK, Transfers

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST = 1 << 20


@contextmanager
def opened() -> Iterator[tuple[int, socket.socket, socket.socket]]:
    """Give a file and the two ends of a connection."""
    fd = os.memfd_create("test")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield fd, ours, theirs
    os.close(fd)


def found_in(fd: int) -> tuple[bytes, int, int]:
    """Return what a replacement finds: unhandled bytes, the number kept with them, the sent."""
    with closing(Transfers(fd, 0, LONGEST)) as other:
        return *other.unhandled, other.sent


def test_a_new_file_has_moved_nothing() -> None:
    with opened() as (fd, _, _):
        assert found_in(fd) == (b"", 0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_every_count_is_in_the_file_after_each_step(seed: int) -> None:
    rng = random.Random(seed)
    with opened() as (fd, ours, theirs), closing(Transfers(fd, 0, LONGEST)) as transfers:
        unhandled, discard, sent, received = b"", 0, 0, b""
        for _ in range(600):
            step = rng.randrange(3)
            if step == 0:
                data = rng.randbytes(rng.choice((1, 100, 5000, CHUNK)))
                theirs.send(data)
                while len(received) < len(data):
                    received += (new := transfers.receive(ours.fileno()))
                    unhandled += new
                assert received == data
                received = b""
            elif step == 1 or len(unhandled) > LONGEST - 2 * CHUNK:
                # A frame may be incomplete for long; then most of it is handled at once.
                keep = rng.choice((0, len(unhandled), min(len(unhandled), rng.randrange(3000))))
                if len(unhandled) > LONGEST - 2 * CHUNK:
                    keep = min(keep, CHUNK)
                discard = rng.randrange(1 << 33)
                unhandled = unhandled[len(unhandled) - keep :]
                transfers.advance(keep, discard)
            else:
                data = rng.randbytes(rng.choice((1, 100, 5000)))
                offset = rng.randrange(len(data))
                count = transfers.send(ours.fileno(), data, offset)
                assert theirs.recv(len(data)) == data[offset:][:count]
                sent += count
            assert found_in(fd) == (unhandled, discard, sent)


def test_nothing_to_receive_and_no_room_to_send_change_nothing() -> None:
    with opened() as (fd, ours, _theirs), closing(Transfers(fd, 0, LONGEST)) as transfers:
        with pytest.raises(BlockingIOError):
            transfers.receive(ours.fileno())
        sent = 0
        with suppress(BlockingIOError):
            while sent < 1 << 30:
                sent += transfers.send(ours.fileno(), bytes(100_000), 0)
        assert 0 < sent < 1 << 30
        assert found_in(fd) == (b"", 0, sent)


def test_the_end_of_the_connection_is_received_as_nothing() -> None:
    with opened() as (fd, ours, theirs), closing(Transfers(fd, 0, LONGEST)) as transfers:
        theirs.send(b"last")
        theirs.close()
        assert transfers.receive(ours.fileno()) == b"last"
        assert transfers.receive(ours.fileno()) == b""
        with pytest.raises(BrokenPipeError):
            transfers.send(ours.fileno(), b"x", 0)
        assert found_in(fd) == (b"last", 0, 0)


def test_the_memory_of_a_long_frame_is_given_back() -> None:
    with opened() as (fd, ours, theirs), closing(Transfers(fd, 0, LONGEST)) as transfers:
        for rest in (0, 10):
            for _ in range(LONGEST // CHUNK):
                theirs.send(bytes(CHUNK))
                assert len(transfers.receive(ours.fileno())) == CHUNK
                unhandled, _ = transfers.unhandled
                transfers.advance(len(unhandled), 0)
            assert os.fstat(fd).st_blocks * 512 >= LONGEST
            transfers.advance(rest, 0)
            assert os.fstat(fd).st_blocks * 512 <= (64 << 10) + 3 * mmap.PAGESIZE
            assert found_in(fd)[0] == bytes(rest)
            transfers.advance(0, 0)
