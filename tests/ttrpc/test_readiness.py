"""One task that waits for many sockets: each gets its turn, and so does everybody else."""

from __future__ import annotations

import os
import socket
from collections import Counter
from contextlib import ExitStack
from functools import partial

import trio
import trio.testing

from shim.ttrpc.readiness import open_readiness


async def test_who_has_something_to_read_is_called_until_it_is_read_and_no_other() -> None:
    ours, theirs = socket.socketpair()
    silent, other = socket.socketpair()
    read: list[bytes] = []
    with ours, theirs, silent, other:
        async with open_readiness() as readiness:
            with (
                readiness.calling(ours.fileno(), lambda: read.append(ours.recv(2))),
                readiness.calling(silent.fileno(), lambda: read.append(b"silent")),
            ):
                theirs.sendall(b"1234")
                await trio.testing.wait_all_tasks_blocked()
                assert read == [b"12", b"34"]
                theirs.close()
                while len(read) < 4:
                    await trio.lowlevel.checkpoint()
                assert read[2:4] == [b"", b""]  # the end stays readable
            count = len(read)
            await trio.testing.wait_all_tasks_blocked()
            assert len(read) == count, "nobody is called after the block"


async def test_sockets_that_are_always_ready_starve_nobody() -> None:
    calls: Counter[int] = Counter()
    turns = 0
    with ExitStack() as stack:
        pairs = [tuple(map(stack.enter_context, socket.socketpair())) for _ in range(50)]
        async with open_readiness() as readiness:
            for number, (ours, theirs) in enumerate(pairs):
                theirs.sendall(b"never read")
                called = partial(calls.update, [number])
                stack.enter_context(readiness.calling(ours.fileno(), called))
            while min(calls[number] for number in range(50)) < 10:
                turns += 1
                await trio.lowlevel.checkpoint()
            stack.close()
    assert max(calls.values()) <= 12, "they are called in turn"
    assert turns >= 20, "and other tasks run in between"


async def test_it_leaves_nothing_open() -> None:
    before = os.listdir("/proc/self/fd")
    async with open_readiness():
        pass
    assert os.listdir("/proc/self/fd") == before
