"""A daemon is killed at any moment: what its manager has and what its journal has is all."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api.envelope_pb2 import Envelope
from shim.api.events_pb2 import TaskStart
from shim.events.encoding import decode
from shim.events.publisher import open_publisher
from shim.ttrpc.server import unary
from tests.events.delivering import Manager, serving
from tests.events.publishing import COUNT

if TYPE_CHECKING:
    from shim.api.forward_pb2 import ForwardRequest

ROUNDS = 100


class Moody(Manager):
    """Takes events, except in a ``bad`` mood."""

    bad = False

    @unary
    async def Forward(self, request: ForwardRequest) -> Empty:
        if self.bad:
            raise GRPCError(Status.UNAVAILABLE, "not now")
        self.got.append(request.envelope)
        return Empty()


def number_of(envelope: Envelope) -> int:
    return TaskStart.FromString(envelope.event.value).pid


class Victim:
    """The program that publishes, and its output."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._said = b""

    async def line(self) -> str:
        assert self._process.stdout is not None
        while b"\n" not in self._said:
            more = await self._process.stdout.receive_some()
            assert more, "it ended"
            self._said += more
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    async def run_and_kill(self, first: int, seconds: float) -> list[int]:
        """Have a process publish from ``first`` on, kill it, and return the published
        numbers.
        """
        assert self._process.stdin is not None
        await self._process.stdin.send_all(b"%d\n" % first)
        published: list[int] = []
        pid = 0
        while not (pid and published):  # their order on the pipe is not defined
            line = await self.line()
            if line.startswith("pid "):
                pid = int(line.removeprefix("pid "))
            else:
                published.append(int(line))
        await trio.sleep(seconds)  # a random moment, not a wait for anything
        os.kill(pid, signal.SIGKILL)
        while (line := await self.line()) != "over":
            published.append(int(line))
        return published


@pytest.mark.slow
async def test_killed_a_hundred_times_it_loses_nothing_and_says_nothing_twice(
    tmp_path: Path,
) -> None:
    dice = random.Random(7)
    manager = Moody()
    journal = tmp_path / "events.journal"
    published: list[int] = []
    command = [sys.executable, "-m", "tests.events.publishing", str(tmp_path)]
    async with serving(tmp_path / "events", manager):
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        victim = Victim(process)
        try:
            with trio.fail_after(120):
                for number in range(ROUNDS):
                    manager.bad = dice.random() < 0.4
                    seconds = dice.choice([0, 0.001, 0.005, 0.02])
                    published += await victim.run_and_kill(1 + 2 * COUNT * number, seconds)
                    told = [number_of(envelope) for envelope in manager.got]
                    data = journal.read_bytes() if journal.exists() else b""
                    left = [
                        number_of(Envelope.FromString(one.payload)) for one in decode(data).waiting
                    ]
                    # One was under way: delivered, and its acknowledgement not read.
                    if told and left and told[-1] == left[0]:
                        left = left[1:]
                    assert told + left == sorted(told + left)
                    assert not set(told) & set(left)
                    assert set(published) <= set(told + left)
        finally:
            process.kill()
            await process.wait()
        manager.bad = False
        opened = open_publisher(str(tmp_path / "events"), "ns", str(journal))
        async with opened as publisher:
            with trio.fail_after(60):
                await publisher.flush()
    told = [number_of(envelope) for envelope in manager.got]
    assert set(published) <= set(told)
    assert told == sorted(told)
    # Only the event under way when it was killed is sent a second time.
    assert len(told) - len(set(told)) <= ROUNDS
