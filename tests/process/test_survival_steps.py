"""A daemon is killed before a random line of its code: nothing is lost, and nothing comes twice.

``SHIM_TEST_KILLS`` is the number of lives, and ``SHIM_TEST_SEED`` selects the lines.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from grpclib.exceptions import GRPCError

from shim import names
from shim.api.task_pb2 import PauseRequest, ResumeRequest, ShutdownRequest, StateRequest
from tests.e2e.waiting import PATIENCE
from tests.process import stepping
from tests.process.builds import Build
from tests.process.driven import verdict
from tests.process.survival import COUNT, daemon_of, numbers
from tests.process.test_survival_calls import RESTORING
from tests.process.test_upgrade import move
from tests.stdio.conftest import read_all, read_until
from tests.stdio.test_survival import add_dropped
from tests.stdio.whole.client import Streams, close_stdin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.process.rig import Rig
    from tests.process.survival import Start, Survivor

pytestmark = pytest.mark.cold  # the fork servers are the test's own

LIVES = int(os.environ.get("SHIM_TEST_KILLS", "12"))
SEED = int(os.environ.get("SHIM_TEST_SEED", "1"))
# The versions of the builds whose daemons are killed.
FIRST, SECOND = "8.8.8", "9.9.9"
# Lines that a daemon runs in a life, about, and in a restore.
LIFE, RESTORE = 6000, 3000
# Writes 30,000 lines within some time.
MANY = """i=0; while [ $i -lt 30 ]; do
seq $((i * 1000 + 1)) $((i * 1000 + 1000)); i=$((i + 1)); usleep 5000
done; exit 7"""
LINES = b"".join(b"%d\n" % number for number in range(1, 30_001))
LOGGER = "#!/bin/sh\nexec 5>&-\ncat <&3 >>%s\ncat <&4\n"


class Steps:
    """Starts daemons that are killed before chosen lines."""

    def __init__(self, rig: Rig, survivors: Start, server: str) -> None:
        self.path = rig.root / "steps"
        self.server = server
        self._rig = rig
        self.survivors = survivors
        self._random = random.Random(SEED)

    def choose(self, most: int) -> None:
        """Choose a line for the next daemon, and sometimes one for its replacement."""
        lines = [self._random.randrange(1, most)]
        if self._random.random() < 0.4:
            lines.append(self._random.randrange(1, RESTORE))
        self.path.write_text(" ".join(map(str, lines)))

    async def start(self, bundle: Path) -> Survivor:
        """Return the shim of ``bundle``, whose daemon is killed within its life."""
        self.path.write_text("")
        shim = await self.survivors(bundle)
        await move(shim, self.server)
        self.choose(LIFE)
        await shim.replace()
        return shim

    @property
    def kills(self) -> list[str]:
        """The lines before which daemons were killed."""
        path = self.path.with_suffix(".log")
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
async def steps(rig: Rig, survivors: Start, monkeypatch: pytest.MonkeyPatch) -> Steps:
    monkeypatch.setenv("CONTAINERD_STATE", str(rig.root))
    monkeypatch.setenv(stepping.VARIABLE, str(rig.root / "steps"))
    return Steps(rig, survivors, await stepped(rig, FIRST).server())


def stepped(rig: Rig, version: str) -> Build:
    """Return a build whose daemons call :func:`stepping.arm`."""
    build = Build.copy(rig.root / version, version)
    shutil.copy(stepping.__file__, build.root / "shim/stepping.py")
    build.edit(
        "shim/daemon.py",
        lambda text: text.replace(
            "    COUNTERS.reset()\n",
            "    COUNTERS.reset()\n    from shim.stepping import arm\n    arm()\n",
        ),
    )
    return build


class Life:
    """The life of the container ``id_`` with streams of one ``kind``."""

    def __init__(self, rig: Rig, id_: str, kind: str) -> None:
        self.id = id_
        self.kind = kind.removesuffix("-terminal")
        self.terminal = kind != self.kind
        self.rig = rig
        self.streams = Streams(rig, id_)
        self.file = rig.root / f"{id_}.out"
        self.received: list[bytes] = []

    def fields(self) -> dict[str, Any]:
        """Return the fields of the Create request."""
        match self.kind:
            case "file":
                return {"stdout": f"file://{self.file}"}
            case "logger":
                path = self.rig.root / f"{self.id}.logger"
                path.write_text(LOGGER % self.file)
                path.chmod(0o755)
                return {"stdout": f"binary://{path}"}
            case "input":
                return self.streams.fields("stdin", "stdout")
            case "restore":
                runtime = self.rig.wrapper(f"{self.id}.restoring", RESTORING)
                options = self.rig.options(binary_name=runtime)
                fields = self.streams.fields("stdin", "stdout")
                return fields | {"options": options, "checkpoint": "/images"}
        return self.streams.fields("stdout")

    def change(self, config: dict[str, Any]) -> None:
        config["process"]["terminal"] = self.terminal
        if self.kind in ("spool", "drop"):
            config.setdefault("annotations", {})[names.OUTPUT_POLICY] = self.kind

    async def run(self, steps: Steps) -> None:
        has_input = self.kind in ("input", "restore")
        script = "cat; exit 7" if has_input else COUNT if self.kind == "exec" else MANY
        bundle = self.rig.bundle(self.id, "sh", "-c", script, change=self.change)
        shim = await steps.start(bundle)
        out = None
        async with trio.open_nursery() as nursery:
            if self.kind not in ("file", "logger", "spool"):
                out = self.streams.reader()
            await shim.create(bundle, terminal=self.terminal, **self.fields())
            if out is not None:
                nursery.start_soon(self.read, out)
            await shim.start(self.id)
            if self.kind == "exec":
                await self.use(shim)
            if has_input:
                await self.write(shim)
            assert (await shim.wait(self.id)).exit_status == 7
            if self.kind == "spool":
                nursery.start_soon(self.read, self.streams.reader())
            await shim.delete(self.id)
            self.rig.track(await daemon_of(shim.task))
            await shim.task.Shutdown(ShutdownRequest(id=self.id), timeout=20)
        self.check()
        await verdict(self.rig, shim.oracle, self.id)

    async def read(self, out: Any) -> None:
        self.received.append(await read_all(out))

    async def write(self, shim: Survivor) -> None:
        writer = self.streams.writer()
        for number in range(1, 41):
            os.write(writer.number, b"%d\n" % number)
            await trio.sleep(0.003)
        if self.terminal:
            os.write(writer.number, b"\x04")
        else:
            writer.close()
            await shim.task.CloseIO(close_stdin(self.id), timeout=20)

    async def use(self, shim: Survivor) -> None:
        """Run an exec, pause and resume the container, and end it."""
        streams = Streams(self.rig, f"{self.id}.e1")
        out = streams.reader()
        fields = streams.fields("stdin", "stdout")
        try:
            await shim.exec(self.id, "e1", "sh", "-c", "cat; exit 5", **fields)
        except GRPCError as exc:
            if "was interrupted" not in (exc.message or ""):
                raise
        else:
            writer = streams.writer()
            os.write(writer.number, b"input")
            assert await read_until(out, 5) == b"input"
            writer.close()
            await shim.task.CloseIO(close_stdin(self.id, "e1"), timeout=20)
            assert (await shim.wait(self.id, "e1")).exit_status == 5
        await shim.delete(self.id, "e1")
        await shim.task.Pause(PauseRequest(id=self.id), timeout=20)
        await shim.task.Resume(ResumeRequest(id=self.id), timeout=20)
        await shim.kill(self.id, number=signal.SIGTERM)

    def check(self) -> None:
        data = self.received[0] if self.received else self.file.read_bytes()
        data = data.replace(b"\r\n", b"\n")
        match self.kind:
            case "exec":
                assert numbers(data) > 1
            case "drop":
                assert add_dropped(data, LINES) == len(LINES)
            case "input" | "restore":
                # A terminal echoes, before or after what cat writes.
                assert {int(word) for word in data.split()} == set(range(1, 41))
                assert self.terminal or numbers(data) == 40
            case _:
                assert data == LINES


@contextmanager
def told(steps: Steps, what: str) -> Iterator[None]:
    """Print the lines of the kills if the block fails."""
    try:
        yield
    except BaseException:
        print(f"{what}: killed at", *steps.kills, sep="\n")
        raise


KINDS = (
    *("exec", "exec-terminal", "spool", "spool-terminal", "drop", "drop-terminal", "file"),
    *("logger", "input", "input-terminal", "restore", "restore-terminal"),
)


async def test_a_life_is_whole(rig: Rig, steps: Steps) -> None:
    for number in range(LIVES):
        kind = KINDS[number % len(KINDS)]
        with told(steps, kind), trio.fail_after(60 * PATIENCE):
            await Life(rig, f"c{number}", kind).run(steps)
    assert len(steps.kills) > LIVES / 4


async def test_a_move_loses_nothing(rig: Rig, steps: Steps) -> None:
    """Whichever of the two versions goes on."""
    servers = [steps.server, await stepped(rig, SECOND).server()]
    streams = Streams(rig, "c1")
    out = streams.reader()
    bundle = rig.bundle("c1", "sh", "-c", COUNT)
    steps.path.write_text("")
    shim = await steps.survivors(bundle)
    pid = await shim.run(bundle, **streams.fields("stdout"))
    received: list[bytes] = []

    async def read() -> None:
        received.append(await read_all(out))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for number in range(LIVES):
            with told(steps, "move"), trio.fail_after(60 * PATIENCE):
                steps.choose(RESTORE)
                await move(shim, servers[number % 2])
                rig.track(await daemon_of(shim.task))
                state = await shim.task.State(StateRequest(id="c1"), timeout=20)
                assert state.pid == pid
        steps.path.write_text("")
        await shim.kill("c1", number=signal.SIGTERM)
        assert (await shim.wait("c1")).exit_status == 7
    assert numbers(received[0]) > 100
    await shim.delete("c1")
    await verdict(rig, shim.oracle, "c1")
    assert len(steps.kills) > LIVES / 4
