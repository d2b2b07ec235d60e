"""``python -m tests.bench.density``: many containers, with a daemon for each and with shared ones.

Each variant is a shim and a value of ``share``.  For each, one after the other:

- so many containers, each printing a line every tenth of a second, are started with the
  raw protocol: the time of each ``start``, the memory of all shims with the fork server, and
  State of each container while all of them print;
- with ``--containerd DIRECTORY``, the same number of sleeping containers under a containerd,
  which is killed and started again: the time until ``ctr task list`` lists all as running.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from shim.api import task_pb2
from tests.bench import machine, procs
from tests.bench.caller import Caller
from tests.bench.samples import percentile
from tests.bench.session import memory, open_session
from tests.bench.workplace import NAMESPACE, Shim, open_workplace
from tests.e2e.containerd import Containerd
from tests.e2e.ctr import Ctr
from tests.e2e.image import NAME, write_image
from tests.e2e.managers import find

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.session import Session

BUSY = "while :; do echo 0123456789012345678901234567890123456789; sleep 0.1; done"
SETTLE = 2.0  # seconds for the last start to be over
ROUNDS = 5  # of State for each container


@dataclass(frozen=True, slots=True)
class Variant:
    """A shim, and the value of ``share`` in its host's file; empty for another shim."""

    shim: Shim
    share: str = ""

    @property
    def name(self) -> str:
        return f"{self.shim.name} {self.share}".strip()


@contextmanager
def sharing(variant: Variant) -> Iterator[None]:
    """Let the shims that are started in the block share as ``variant`` says."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(f'share = "{variant.share or "pod"}"\n')
        file.flush()
        os.environ["TRIO_SHIM_CONFIG"] = file.name
        try:
            yield
        finally:
            del os.environ["TRIO_SHIM_CONFIG"]


async def measure(variant: Variant, count: int) -> dict[str, float]:
    """Run ``count`` busy containers; return milliseconds and MiB."""
    async with open_workplace() as place, AsyncExitStack() as stack:
        sessions: list[Session] = []
        starts = []
        for number in range(count + 1):
            session = await stack.enter_async_context(
                open_session(place, variant.shim, "sh", "-c", BUSY)
            )
            stack.enter_context(reading(session.stdout))
            starts.append(session.start())
            await session.connect()
            await session.create()
            await session.run()
            if number:
                sessions.append(session)
            else:  # of a host without a fork server; its daemon is larger
                await place.wait_warm()
                await session.end()
        await trio.sleep(SETTLE)
        found = {
            "start": statistics.median(starts[1:]),
            "pss": memory(sessions),
            "daemons": float(len({session.daemon for session in sessions})),
        }
        before = sum(procs.cpu_seconds(pid) for pid in {one.daemon for one in sessions})
        began = time.perf_counter()
        with ExitStack() as callers:
            taken = []
            for session in sessions:
                caller = callers.enter_context(Caller(session.address, NAMESPACE, session.version))
                request = task_pb2.StateRequest(id=session.id)
                caller.time("State", request, 1)  # it is accepted now
                for _ in range(ROUNDS):
                    taken += caller.time("State", request, 1)
                    await trio.sleep(0.005)
        spent = sum(procs.cpu_seconds(pid) for pid in {one.daemon for one in sessions}) - before
        found["state"] = statistics.median(taken)
        found["state-p99"] = percentile(taken, 99)
        found["cpu"] = spent / (time.perf_counter() - began) * 100
        for session in reversed(sessions):
            await session.end()
    return found


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Read a fifo to nowhere for the block."""
    with subprocess.Popen(["cat", path], stdout=subprocess.DEVNULL) as reader:
        try:
            yield
        finally:
            reader.kill()


def restart(variant: Variant, count: int, directory: Path, rounds: int) -> float:
    """Return the milliseconds from the start of containerd until it knows all containers."""
    root = Path(tempfile.mkdtemp(prefix="tsd", dir="/run"))
    scratch = Path(tempfile.mkdtemp(prefix="tsd-"))
    daemon = Containerd(root, "density", find(directory))
    ctr = Ctr(daemon)
    runtime = str(Path(variant.shim.path).absolute())
    try:
        daemon.start()
        write_image(scratch / "busybox.tar", scratch)
        ctr.ok("images", "import", scratch / "busybox.tar")
        for number in range(count):
            run = ("run", "--detach", "--null-io", "--runtime", runtime)
            ctr.ok(*run, NAME, f"d{number}", "sleep", "1000")
        taken = []
        for _ in range(rounds):
            daemon.kill()
            began = time.perf_counter()
            daemon.start()
            while ctr.ok("task", "list").count("RUNNING") < count:
                time.sleep(0.005)
            taken.append((time.perf_counter() - began) * 1000)
        return statistics.median(taken)
    finally:
        if daemon.running:
            ctr.remove_all()
        daemon.stop()
        shutil.rmtree(scratch)
        shutil.rmtree(root, ignore_errors=True)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.density",
        description="Measure many containers with shared daemons and without.  Needs root.",
    )
    parser.add_argument("--containers", type=int, default=100, help="(100)")
    parser.add_argument("--share", action="append", default=[], help="(pod, namespace and 20)")
    parser.add_argument("--shim", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--containerd", metavar="DIRECTORY", help="of containerd and ctr")
    parser.add_argument("--restarts", type=int, default=3, help="of containerd (3)")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    args = parse(argv)
    ours = str(Path(sys.executable).with_name("containerd-shim-trio-v2"))
    named = dict(text.split("=", 1) for text in args.shim)
    ours = named.pop("trio", ours)
    shares = args.share or ["pod", "namespace", "20"]
    variants = [Variant(Shim("trio", ours), share) for share in shares]
    variants += [Variant(Shim(*pair)) for pair in named.items()]
    print("\n".join(machine.describe({one.shim.name: one.shim.path for one in variants})))
    print(f"{args.containers} containers\n")
    keys = ("start", "pss", "daemons", "state", "state-p99", "cpu")
    heads = [*keys, *(["restart"] if args.containerd else [])]
    print("| |", " | ".join(heads), "|")
    print("| --- |" + " ---: |" * len(heads))
    for variant in variants:
        with sharing(variant):
            found = trio.run(measure, variant, args.containers)
            if args.containerd:
                found["restart"] = restart(
                    variant, args.containers, Path(args.containerd), args.restarts
                )
        print(f"| {variant.name} |", " | ".join(f"{found[key]:.3g}" for key in heads), "|")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
