"""Execs into a container that has as many processes as it may have."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

import shimctl
from shim.errors import ShimError
from tests.e2e.waiting import PATIENCE

if TYPE_CHECKING:
    from tests.process.rig import Rig

STOCK = "io.containerd.runc.v2"
LIMIT = 10
EXECS = 60
# Seconds between two execs: a move between cgroups makes the next one of any process fast for
# some milliseconds, and a fast one fails more often.
PAUSE = 0.05
FILL = "i=1; while [ $i -lt %d ]; do sleep 1000 & i=$((i+1)); done; wait"


def limited(config: dict[str, Any]) -> None:
    config["linux"].setdefault("resources", {})["pids"] = {"limit": LIMIT}


@pytest.mark.e2e
@pytest.mark.skipif(
    shutil.which("containerd-shim-runc-v2") is None, reason="compares with the stock shim"
)
async def test_execs_at_the_pids_limit_fail_no_more_often_than_under_the_stock_shim(
    rig: Rig,
) -> None:
    """With every move prepared 35 % and more of them failed, under the stock shim some 5 %."""
    source = Path(__file__).parents[2]
    ours = f'exec env PYTHONPATH={source} {sys.executable} -m shim "$@"'
    program = rig.wrapper("containerd-shim-trio-v2", ours)
    failed = {}
    tasks = {}
    async with trio.open_nursery() as nursery:
        for runtime in (program, STOCK):
            name = "ours" if runtime == program else "stock"
            bundle = rig.bundle(name, "sh", "-c", FILL % LIMIT, change=limited)
            launched = await shimctl.launch(bundle, bundle.name, runtime=runtime, events="")
            shim = await nursery.start(_connected, launched.address)
            await shim.create(bundle.name, bundle)
            tasks[runtime], failed[runtime] = shim.task(bundle.name), 0
            await tasks[runtime].start()
            with trio.fail_after(10 * PATIENCE):
                while len(await tasks[runtime].pids()) < LIMIT:
                    await trio.sleep(0.01)
        for number in range(EXECS):
            for runtime, task in tasks.items():
                await trio.sleep(PAUSE)
                failed[runtime] += not await _exec(task, f"e{number}")
        for runtime, task in tasks.items():
            await shimctl.dispose(
                rig.root / task.id, task.id, address=task.shim.address, runtime=runtime
            )
        nursery.cancel_scope.cancel()
    assert failed[program] <= failed[STOCK] + EXECS / 4


async def _connected(
    address: str, task_status: trio.TaskStatus[shimctl.Shim] = trio.TASK_STATUS_IGNORED
) -> None:
    async with shimctl.connect(address) as shim:
        task_status.started(shim)
        await trio.sleep_forever()


async def _exec(task: shimctl.Task, name: str) -> bool:
    process = {"args": ["true"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
    one = await task.exec(name, process)
    try:
        await one.start()
        return (await one.wait()).exit_status == 0
    except ShimError:
        return False
    finally:
        await one.delete()
