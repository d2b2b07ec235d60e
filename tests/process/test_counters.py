"""The daemon's counters, in its reply to Stats for the empty id."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from grpclib.exceptions import GRPCError

from shim.api.task_pb2 import StartRequest, StatsRequest, WaitRequest
from shimctl.metrics.collect import Counters, parsed

if TYPE_CHECKING:
    from shim.api.task_grpc import TaskStub
    from tests.process.rig import Rig

WRITTEN = 4 << 20  # bytes, more than fit into the fifo and the container's pipe


async def counters(task: TaskStub) -> Counters:
    found = parsed((await task.Stats(StatsRequest(), timeout=5)).stats)
    assert found is not None
    return found


async def test_a_new_daemon_counts_from_zero(rig: Rig) -> None:
    task = await rig.start(rig.bundle("c1", "sleep", "1000"))
    assert await counters(task) == Counters()


async def test_execs_and_exits_are_counted_with_their_times(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    before = trio.current_time()
    for name in ("e1", "e2"):
        await task.Exec(rig.exec_request("c1", name, "true"), timeout=5)
        await task.Start(StartRequest(id="c1", exec_id=name), timeout=10)
        await task.Wait(WaitRequest(id="c1", exec_id=name), timeout=10)
    elapsed = (trio.current_time() - before) * 1e9
    await rig.sink.wait_for("exit e2")
    found = await counters(task)
    assert (found.execs, found.exits) == (2, 2)
    assert 0 < found.exec_time < elapsed
    assert 0 < found.exit_time < elapsed
    with pytest.raises(GRPCError):
        await task.Stats(StatsRequest(id="absent"), timeout=5)


async def test_events_that_no_manager_takes_are_counted(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    os.unlink(rig.root / "events")  # noqa: PTH108
    await rig.run(task, bundle)
    with trio.fail_after(20):
        # The connection of an earlier event may still have taken some.
        while (await counters(task)).events_waiting == 0:
            await task.Exec(rig.exec_request("c1", "e1", "true"), timeout=5)
            await trio.sleep(0.05)


def annotated(policy: str, config: dict[str, Any]) -> None:
    config["annotations"] = {"io.trio-shim.output": policy, "io.trio-shim.output-limit": "64KiB"}


@pytest.mark.parametrize("policy", ["spool", "drop"])
async def test_output_without_a_reader_is_counted(
    rig: Rig, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = rig.root / "settings.toml"
    settings.write_text(f'[output]\ndirectory = "{rig.root}/spool"\n')
    monkeypatch.setenv("TRIO_SHIM_CONFIG", str(settings))
    change = partial(annotated, policy)
    bundle = rig.bundle("c1", "sh", "-c", f"head -c {WRITTEN} /dev/zero; echo >&2", change=change)
    stdout = rig.root / "stdout"
    os.mkfifo(stdout)
    task = await rig.start(bundle)
    await rig.run(task, bundle, stdout=str(stdout))
    await task.Wait(WaitRequest(id="c1"), timeout=30)
    found = await counters(task)
    assert found.dropped > 0
    # Under drop the first bytes wait in memory, and mark the place in the output.
    assert (found.spooled > 4096) == (policy == "spool")
    kept = os.open(stdout, os.O_RDONLY | os.O_NONBLOCK)
    data = b""
    try:
        with trio.fail_after(20):
            while b"bytes of output dropped]" not in data:
                await trio.lowlevel.wait_readable(kept)
                data += os.read(kept, 1 << 20)
    finally:
        os.close(kept)
    assert data.count(b"\0") + found.dropped == WRITTEN
    assert b"[trio-shim: %d bytes" % found.dropped in data
