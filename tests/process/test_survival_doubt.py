"""A daemon is killed before the step after which a call may have had an effect."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from shim.api.task_pb2 import CheckpointTaskRequest
from tests.e2e.waiting import PATIENCE
from tests.frozen import freezable_disk
from tests.process.driven import groups
from tests.process.survival import daemon_of
from tests.stdio.conftest import read_all
from tests.stdio.whole.client import Streams

if TYPE_CHECKING:
    from tests.process.rig import Rig
    from tests.process.survival import Start

pytestmark = [pytest.mark.cold, pytest.mark.e2e]


async def wait_for_disk(pid: int) -> None:
    """Return once a thread of the process waits for a disk."""
    with trio.fail_after(20 * PATIENCE):
        while True:
            for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
                with suppress(OSError):  # the thread has ended
                    if stat.read_text().rpartition(")")[2].split()[0] == "D":
                        return
            await trio.sleep(0.01)


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
async def test_an_exec_that_the_runtime_has_not_begun_is_begun_again(
    rig: Rig, survivors: Start, terminal: bool
) -> None:
    (rig.rootfs() / "runs").unlink(missing_ok=True)
    first = rig.bundle("c1", "sleep", "1000")
    shim = await survivors(first)
    streams = Streams(rig, "e1")
    out = streams.reader()
    read: list[bytes] = []

    async def read_out() -> None:
        read.append(await read_all(out))

    with freezable_disk(rig.root / "image", rig.root / "c2") as disk:
        (disk.path / "config.json").write_bytes((first / "config.json").read_bytes())
        await shim.run(disk.path)
        script = "echo run >>/runs; echo output; exit 6"
        fields = streams.fields("stdout") | ({"terminal": True} if terminal else {})
        await shim.add("c2", "e1", "sh", "-c", script, **fields)
        daemon = await daemon_of(shim.task)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_out)
            disk.freeze()
            nursery.start_soon(shim.start, "c2", "e1")
            # It removes the files of an earlier process before it starts the runtime.
            await wait_for_disk(daemon)
            os.kill(daemon, signal.SIGKILL)
            disk.thaw()
        rig.track(await daemon_of(shim.task))
        assert (await shim.wait("c2", "e1")).exit_status == 6
        assert [one.replace(b"\r", b"") for one in read] == [b"output\n"]
        assert (rig.rootfs() / "runs").read_text() == "run\n"
        await shim.delete("c2", "e1")
        await shim.kill("c2")
        await shim.wait("c2")
        await shim.delete("c2")
    assert not groups(rig)
    assert not list(Path("/run").glob("console-*"))


async def test_a_checkpoint_that_the_runtime_has_not_begun_is_begun_again(
    rig: Rig, survivors: Start
) -> None:
    first = rig.bundle("c1", "sleep", "1000")
    shim = await survivors(first)
    begun = rig.root / "begun"
    runtime = rig.wrapper(
        "criu", f'case " $* " in *" checkpoint "*) echo run >>{begun}; exit;; esac\nexec runc "$@"'
    )
    with freezable_disk(rig.root / "image", rig.root / "c2") as disk:
        (disk.path / "config.json").write_bytes((first / "config.json").read_bytes())
        await shim.run(disk.path, options=rig.options(binary_name=runtime))
        daemon = await daemon_of(shim.task)
        request = CheckpointTaskRequest(id="c2", path=str(rig.root / "image"))
        async with trio.open_nursery() as nursery:
            disk.freeze()
            nursery.start_soon(partial(shim.task.Checkpoint, request, timeout=60))
            await wait_for_disk(daemon)  # it makes criu's directory
            os.kill(daemon, signal.SIGKILL)
            disk.thaw()
        rig.track(await daemon_of(shim.task))
        assert begun.read_text() == "run\n"
        await shim.kill("c2")
        await shim.wait("c2")
        await shim.delete("c2")
