"""The resources of a pod's shim after many containers and hundreds of execs: the same as
before.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from grpclib.exceptions import GRPCError

from shim.api.mount_pb2 import Mount
from tests.loops import turns
from tests.process.driven import Driven, groups, verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.process.rig import Rig

pytestmark = pytest.mark.e2e

# As many at once as keep a small machine busy.
LANES = 6
# As many as show 7 KiB that each of them leaves, 3.5 KiB before a release, which is less than
# the objects of one process and its streams.  A single fd, mount, cgroup or file is seen in
# any case.
EXECS, CONTAINERS = turns(120, 250), turns(25, 50)
# Bytes a shim may have grown: what malloc has free and not given back comes and goes.
GROWTH = 1 << 20


@dataclass(frozen=True)
class Holdings:
    """All that a daemon has, but for memory; fds by kind."""

    fds: Counter[str]
    children: str
    mounts: int
    cgroups: int
    files: frozenset[str]


def holdings(rig: Rig) -> Holdings:
    process = Path(f"/proc/{rig.daemons[0]}")
    kinds: Counter[str] = Counter()
    for fd in (process / "fd").iterdir():
        try:
            kinds[os.readlink(fd).rstrip("0123456789[]")] += 1  # noqa: PTH115 - no path
        except FileNotFoundError:
            continue
    return Holdings(
        fds=kinds,
        children=(process / "task" / process.name / "children").read_text(),
        mounts=(process / "mountinfo").read_text().count(str(rig.root)),
        cgroups=len(groups(rig)),
        files=frozenset(path.name for path in (rig.root / "c1").iterdir()),
    )


def resident(pid: int) -> int:
    """Return the bytes ``pid`` has in memory, its share of libraries included."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


async def settled(rig: Rig, sockets: int) -> Holdings:
    """Return the holdings once ``sockets`` are open: the events' lingers for seconds."""
    with trio.move_on_after(15):
        while holdings(rig).fds["socket:"] != sockets:
            await trio.sleep(0.05)
    return holdings(rig)


class Crowd:
    """Execs and containers of every kind, one after the other in some lanes at once."""

    def __init__(self, driven: Driven) -> None:
        self.driven = driven
        self.rig = driven.rig
        self.ids: list[str] = []
        self._count = 0

    async def execs(self, number: int) -> None:
        await self._lanes(self._exec, number)

    async def containers(self, number: int) -> None:
        await self._lanes(self._container, number)

    async def many(self) -> None:
        """Run all execs and containers, until the manager has heard of each."""
        await self.execs(EXECS)
        await self.containers(CONTAINERS)
        await self.rig.sink.wait_for("delete", self.ids[-1])

    async def _lanes(self, one: Callable[[int], object], number: int) -> None:
        first, self._count = self._count, self._count + number
        waiting = iter(range(first, self._count))

        async def lane() -> None:
            for index in waiting:
                await one(index)  # type: ignore[misc] # both are coroutine functions

        async with trio.open_nursery() as nursery:
            for _ in range(LANES):
                nursery.start_soon(lane)

    def _fifos(self, name: str, *streams: str) -> dict[str, str]:
        paths = {stream: str(self.rig.root / f"{name}-{stream}") for stream in streams}
        for path in paths.values():
            os.mkfifo(path)
        return paths

    async def _exec(self, index: int) -> None:
        name, code = f"e{index}", index % 200
        kind = index % 5
        command = ["sh", "-c", f"echo hello; exit {code}"]
        fifos: dict[str, str] = {}
        if kind == 1:
            fifos = self._fifos(name, "stdout", "stderr")
        elif kind == 2:
            fifos = self._fifos(name, "stdin", "stdout")
        elif kind == 3:
            command = ["/nonexistent"]
        readers = [
            os.open(p, os.O_RDONLY | os.O_NONBLOCK) for k, p in fifos.items() if k != "stdin"
        ]
        await self.driven.add("c1", name, *command, terminal=kind == 2, **fifos)
        try:
            await self.driven.start("c1", name)
        except GRPCError:
            assert kind == 3
        else:
            assert (await self.driven.wait("c1", name)).exit_status == code
        await self.driven.delete("c1", name)
        for fd in readers:
            os.close(fd)
        for path in fifos.values():
            Path(path).unlink()

    async def _container(self, index: int) -> None:
        id_, code = f"d{index}", index % 200
        script = f"echo hello; exit {code}"
        own = self.rig.bundle(
            id_, "sh", "-c", script, change=lambda c: c["root"].update(path="rootfs")
        )
        fifos = self._fifos(id_, "stdout") if index % 2 else {}
        readers = [os.open(path, os.O_RDONLY | os.O_NONBLOCK) for path in fifos.values()]
        rootfs = Mount(type="bind", source=str(self.rig.rootfs()), options=["rbind", "rw"])
        await self.driven.run(own, rootfs=[rootfs], **fifos)
        assert (await self.driven.wait(id_)).exit_status == code
        await self.driven.delete(id_)
        for fd in readers:
            os.close(fd)
        self.ids.append(id_)


async def test_hundreds_of_execs_and_many_containers_leave_nothing(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    driven = Driven(rig, await rig.start(bundle))
    sockets = holdings(rig).fds["socket:"]
    await driven.run(bundle)
    crowd = Crowd(driven)
    # As much as is measured then.  Within it comes all that grows once: paths fill
    # CPython's table of interned strings, which then doubles (550 KB) and stays, the
    # first full collection maps the rest of its code, malloc finds room for LANES.
    await crowd.many()
    before, small = await settled(rig, sockets), resident(rig.daemons[0])
    await crowd.many()
    assert await settled(rig, sockets) == before
    grown = resident(rig.daemons[0]) - small
    assert grown < GROWTH, f"grown by {grown} bytes from {small}"
    await driven.end("c1")
    await verdict(rig, driven.oracle, "c1", *crowd.ids)
