"""A rootfs on a disk that hangs: a frozen ext4 file system."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.linux import sockets
from shim.ttrpc.calls import ConnectionLostError
from tests.e2e.waiting import PATIENCE
from tests.process.configs import overlay
from tests.process.hung import answers, wait_thread_stuck
from tests.process.test_members import Pod

if TYPE_CHECKING:
    from tests.frozen import FreezableDisk
    from tests.process.rig import Rig

pytestmark = pytest.mark.e2e


async def test_a_rootfs_mount_that_hangs_holds_up_its_create_only(
    rig: Rig, disk: FreezableDisk
) -> None:
    pod = await Pod.start(rig)
    task = pod.task
    bundle = rig.bundle("c2", "sleep", "1000")
    mount = overlay(rig, disk.path)
    disk.freeze()
    refused: list[GRPCError] = []

    async def create() -> None:
        request = rig.create_request(bundle, rootfs=[mount])
        with pytest.raises(GRPCError) as caught:
            await task.Create(request, timeout=60)
        refused.append(caught.value)

    daemon = rig.daemons[0]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(create)
        await wait_thread_stuck(daemon)
        await answers(rig, task, "c1", 1)
        assert not refused
    assert refused[0].status is Status.DEADLINE_EXCEEDED
    assert str(bundle / "rootfs") in (refused[0].message or "")
    await answers(rig, task, "c1", 2)
    disk.thaw()
    with trio.fail_after(10 * PATIENCE):
        while len(os.listdir(f"/proc/{daemon}/task")) > 1:
            await trio.sleep(0.01)
    assert str(bundle) not in Path(f"/proc/{daemon}/mounts").read_text()


async def test_a_daemon_killed_while_a_mount_hangs_serves_nobody_any_more(
    rig: Rig, disk: FreezableDisk
) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    mount = overlay(rig, disk.path)
    disk.freeze()

    async def create() -> None:
        with pytest.raises((GRPCError, ConnectionLostError)):
            await task.Create(rig.create_request(bundle, rootfs=[mount]), timeout=60)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(create)
        await wait_thread_stuck(rig.daemons[0])
        os.kill(rig.daemons[0], signal.SIGKILL)
    with trio.fail_after(5 * PATIENCE):
        while sockets.can_connect(rig.address):
            await trio.sleep(0.01)
