"""A daemon that is killed while a manager uses it, and the replacements that answer."""

from __future__ import annotations

import json
import os
import random
import signal
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import trio
from google.protobuf.any_pb2 import Any as AnyMessage

from shim import names
from shim.api.task_pb2 import ConnectRequest
from shim.recovery.alike import beside
from shim.ttrpc.calls import UnaryUnaryMethod
from tests.e2e.waiting import PATIENCE
from tests.process.driven import Driven
from tests.process.rig import alive, wait_gone
from tests.process.steps import wait_trapped
from tests.stdio.whole.client import Streams

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from shim.api.task_grpc import TaskStub
    from shim.linux.fifos import Fd
    from tests.process.rig import Rig
    from tests.process.servers import Server

# Begins a script that pauses with ``read -t SECONDS x <&3``: no process for each pause.
_PAUSES = "mkfifo /never 2>/dev/null; exec 3<>/never; "
# A program that writes numbers until SIGTERM, and exits with 7; :func:`numbers` reads them.
COUNT = (
    f"trap 'exit 7' TERM; {_PAUSES}i=0; while :; do i=$((i+1)); echo $i; read -t 0.003 x <&3; done"
)
# Starts the daemon of a bundle.
Start: TypeAlias = "Callable[[Path], Awaitable[Survivor]]"


def until_term(code: int) -> tuple[str, ...]:
    """Return the arguments of a process that exits with ``code`` at SIGTERM."""
    return "sh", "-c", f"trap 'exit {code}' TERM; {_PAUSES}while :; do read -t 1000 x <&3; done"


async def exec_until_term(shim: Survivor, exec_id: str, code: int) -> int:
    """Run an exec of c1 that exits with ``code`` at SIGTERM; return its pid."""
    pid = await shim.exec("c1", exec_id, *until_term(code))
    await wait_trapped(pid)
    return pid


def enable(rig: Rig) -> str:
    """Write a host's file that has daemons replaced; return its path."""
    path = rig.root / "host.toml"
    path.write_text("survive = true\n")
    return str(path)


async def daemon_of(task: TaskStub) -> int:
    """Return the pid of the daemon that answers ``task``."""
    return (await task.Connect(ConnectRequest(id="any"), timeout=20)).shim_pid


async def status_of(shim: Survivor) -> dict[str, object]:
    call = UnaryUnaryMethod(shim.task.State.channel, names.STATUS, AnyMessage, AnyMessage)
    return dict(json.loads((await call(AnyMessage(), timeout=20)).value))


async def wait_kept(shim: Survivor, *, kept: bool = True) -> None:
    with trio.fail_after(20 * PATIENCE):
        while (await status_of(shim))["survives"] is not kept:
            await trio.sleep(0.01)


async def kill_server(server: Server, *shims: Survivor) -> int:
    """Kill the fork server; return its pid when the daemons have noticed it.

    The daemons start no other one for a minute, as after one that they have started.
    """
    pid = await server.wait_up()
    for path in server.sockets:
        Path(beside(str(path), ".again")).write_text("a test")
    os.kill(pid, signal.SIGKILL)
    await wait_gone([pid])
    for shim in shims:
        await wait_kept(shim, kept=False)
    return pid


async def run_counting(rig: Rig, survivors: Start) -> tuple[Survivor, int]:
    """Run the container c1, which counts; return its shim and its pid."""
    bundle = rig.bundle("c1", "sh", "-c", COUNT)
    shim = await survivors(bundle)
    return shim, await shim.run(bundle)


async def run_read(rig: Rig, survivors: Start) -> tuple[Survivor, int, Fd]:
    """Run the container c1, which counts; return its shim, its pid, and a reader of its output."""
    streams = Streams(rig, "c1")
    out = streams.reader()
    bundle = rig.bundle("c1", "sh", "-c", COUNT)
    shim = await survivors(bundle)
    return shim, await shim.run(bundle, **streams.fields("stdout")), out


class Survivor(Driven):
    """Drives a shim that is killed in between."""

    async def replace(self, number: int = signal.SIGKILL) -> int:
        """Kill the daemon by the signal ``number``; return the pid of its replacement."""
        before = await daemon_of(self.task)
        os.kill(before, number)
        with trio.fail_after(10 * PATIENCE):
            while (after := await daemon_of(self.task)) == before:
                await trio.sleep(0.001)
        self.rig.track(after)
        assert not alive(before)
        return after

    @asynccontextmanager
    async def killed(self, longest: float, seed: int) -> AsyncIterator[Kills]:
        """Kill the daemon at random times during the block, at least each ``longest`` s."""
        kills = Kills(self, random.Random(seed), longest)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kills.run)
            yield kills
            nursery.cancel_scope.cancel()
        self.rig.track(await daemon_of(self.task))  # the last kill's replacement


class Kills:
    """The kills of a block of :meth:`Survivor.killed`; ``count`` is their number so far."""

    def __init__(self, shim: Survivor, numbers: random.Random, longest: float) -> None:
        self.count = 0
        self._shim = shim
        self._numbers = numbers
        self._longest = longest

    async def run(self) -> None:
        """Kill until cancelled."""
        while True:
            await trio.sleep(self._numbers.uniform(0, self._longest))
            pid = await daemon_of(self._shim.task)
            self._shim.rig.track(pid)
            await trio.sleep(self._numbers.uniform(0, 0.02))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.count += 1


def numbers(output: bytes) -> int:
    """Return the last number of an output that counts from 1, each in a line of its own."""
    words = output.split()
    assert words == [b"%d" % number for number in range(1, len(words) + 1)], output[-200:]
    return len(words)
