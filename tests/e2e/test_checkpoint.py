"""Checkpoint and restore, with a criu that works on this kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty

from shim.api.options_pb2 import CheckpointOptions
from shim.api.task_pb2 import CheckpointTaskRequest
from shim.ttrpc.client import UnaryUnaryMethod
from tests.e2e.test_direct import TASK, open_shim
from tests.e2e.test_lifecycle import alive
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.ctr import Ctr

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("working_criu")]
SCENARIO = "Checkpoint and restore"
COUNT = "i=0; while true; do i=$((i+1)); echo $i > /count; sleep 0.05; done"


def count(ctr: Ctr, name: str) -> int:
    return int(ctr.exec(name, "cat", "/count").text or "0")


def counting(ctr: Ctr) -> str:
    # criu restores files by path: open files must exist again.
    name = ctr.start("sh", "-c", COUNT, flags=("--null-io",))
    wait_until("it counts", lambda: count(ctr, name) > 5)
    return name


async def checkpoint(ctr: Ctr, name: str, images: Path, *, leave: bool) -> None:
    """Ask the shim itself: ctr sends a path and --exit to the stock runtime only."""
    options = Any(
        type_url="containerd.runc.v1.CheckpointOptions",
        value=CheckpointOptions(exit=leave).SerializeToString(),
    )
    request = CheckpointTaskRequest(id=name, path=str(images), options=options)
    async with open_shim(ctr, name) as channel:
        method = UnaryUnaryMethod(channel, TASK + "Checkpoint", CheckpointTaskRequest, Empty)
        await method(request, timeout=60)


async def test_a_checkpointed_container_goes_on(ctr: Ctr, tmp_path: Path) -> None:
    name = counting(ctr)
    pid = ctr.pid(name)
    await checkpoint(ctr, name, tmp_path / "images", leave=False)
    assert (tmp_path / "images/inventory.img").exists()
    assert alive(pid)
    before = count(ctr, name)
    wait_until("it counts on", lambda: count(ctr, name) > before)


async def test_a_checkpoint_with_exit_stops_the_container(ctr: Ctr, tmp_path: Path) -> None:
    name = counting(ctr)
    await checkpoint(ctr, name, tmp_path / "images", leave=True)
    ctr.wait_state(name, "STOPPED")
    assert ctr.delete(name) == 137


def test_a_restored_container_counts_on_where_it_was(ctr: Ctr) -> None:
    name, image = counting(ctr), f"checkpoint-{ctr.new_id()}"
    ctr.ok("c", "checkpoint", "--rw", "--image", "--task", name, image)
    before = count(ctr, name)
    ctr.kill(name)
    ctr.wait_state(name, "STOPPED")
    assert ctr.delete(name) == 137

    again = ctr.new_id()
    ctr.ok("c", "restore", "--rw", "--live", again, image)
    assert ctr.state(again) == "RUNNING"
    after = wait_until("it counts on", lambda: count(ctr, again))
    assert 5 < after < before + 40
    wait_until("and on", lambda: count(ctr, again) > after)
    ctr.kill(again)
    ctr.wait_state(again, "STOPPED")
    assert ctr.delete(again) == 137
    ctr.ok("images", "rm", image)
