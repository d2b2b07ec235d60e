"""A container that floods, or a client that does, takes nothing from the others of its daemon."""

from __future__ import annotations

import os
import select
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from shim.api.task_pb2 import StateRequest
from tests.bench.caller import Caller
from tests.bench.samples import percentile
from tests.e2e.waiting import PATIENCE
from tests.process.rig import NAMESPACE, Rig
from tests.process.sharing import shared

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timed

# Milliseconds; alone, both take a fraction of one.
LATENCY = 40 * PATIENCE
# As many requests at once as the connection takes, without a pause.  argv: address, id.
FLOOD = """
import sys, threading
from tests.bench.caller import Caller
from shim.api.task_pb2 import StateRequest
caller = Caller(sys.argv[1], sys.argv[3], 3)
payload = StateRequest(id=sys.argv[2]).SerializeToString()
def read():
    while caller.sock.recv(1 << 20):
        pass
caller.sock.settimeout(None)
threading.Thread(target=read, daemon=True).start()
while True:
    caller.sock.sendall(b"".join(caller.encode("State", payload) for _ in range(500)))
"""


def latencies(address: str, id_: str, times: int = 300) -> list[float]:
    with Caller(address, NAMESPACE, 3) as caller:
        return caller.time("State", StateRequest(id=id_), times)


def echoes(stdin: int, stdout: int, times: int = 100) -> list[float]:
    """Return the milliseconds from a line into ``cat`` to the same line out of it."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        os.write(stdin, b"line\n")
        assert select.select([stdout], [], [], 10 * PATIENCE)[0]
        assert os.read(stdout, 100) == b"line\n"
        taken.append((time.perf_counter() - began) * 1000)
    return taken


@contextmanager
def flooding_client(address: str, id_: str) -> Iterator[None]:
    argv = [sys.executable, "-c", FLOOD, address, id_, NAMESPACE]
    with subprocess.Popen(argv, cwd=Path(__file__).parents[2]) as process:
        try:
            yield
        finally:
            process.kill()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    with subprocess.Popen(["cat", str(path)], stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


@pytest.mark.parametrize("flood", ["output", "calls"])
async def test_a_quiet_container_is_answered_and_heard_beside_a_flood(
    rig: Rig, flood: str
) -> None:
    quiet, loud = shared(rig, "quiet", "cat"), shared(rig, "loud", "yes")
    for path in (quiet / "in", quiet / "out", loud / "out"):
        os.mkfifo(path)
    stdin, stdout = (os.open(quiet / name, os.O_RDWR | os.O_NONBLOCK) for name in ("in", "out"))
    try:
        task = await rig.start(quiet)
        await rig.run(task, quiet, stdin=str(quiet / "in"), stdout=str(quiet / "out"))
        task = await rig.start(loud)
        assert len(rig.daemons) == 1
        with reading(loud / "out"):
            if flood == "output":
                await rig.run(task, loud, stdout=str(loud / "out"))
                source = reading(loud / "out")
            else:
                source = flooding_client(rig.address, "quiet")
            with source:
                await trio.to_thread.run_sync(latencies, rig.address, "quiet", 20)
                states = await trio.to_thread.run_sync(latencies, rig.address, "quiet")
                lines = await trio.to_thread.run_sync(echoes, stdin, stdout)
        for name, taken in (("State", states), ("line", lines)):
            middle, last = statistics.median(taken), percentile(taken, 99)
            print(f"{flood}: {name} {middle:.2f} ms, 99th percentile {last:.2f} ms")
        assert percentile(states, 99) < LATENCY
        assert percentile(lines, 99) < LATENCY
    finally:
        os.close(stdin)
        os.close(stdout)
