"""``delete``: cleans up the remains, returns the same reply each time, and is quick."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
from grpclib.exceptions import GRPCError

from shim.api.task_pb2 import DeleteRequest, DeleteResponse, KillRequest, StateRequest, WaitRequest
from shim.linux.libc import mount
from shim.linux.mountinfo import mount_points
from shim.linux.sockets import socket_path
from tests.e2e.waiting import PATIENCE
from tests.process.configs import overlay, own_rootfs
from tests.process.rig import Rig, alive, wait_gone
from tests.process.steps import kill_daemon

if TYPE_CHECKING:
    from pathlib import Path

MS_BIND = 4096


async def delete(rig: Rig, bundle: Path, *args: str) -> DeleteResponse:
    """Run ``delete`` for the bundle, while the rig takes the events that it delivers."""
    before = time.monotonic()
    done = await rig.call_shim(bundle, "-id", bundle.name, "-bundle", str(bundle), *args, "delete")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - before < 5 * PATIENCE
    return DeleteResponse.FromString(done.stdout)


async def test_after_the_shim_was_killed_nothing_is_left(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000", change=own_rootfs)
    layers = overlay(rig)
    task = await rig.start(bundle)
    created = await rig.run(task, bundle, rootfs=[layers])
    # The shim's own mount, and one a manager stacked on it.
    mount(str(bundle / "rootfs"), str(bundle / "rootfs"), "", MS_BIND)
    await kill_daemon(rig)
    assert alive(created.pid)
    reply = await delete(rig, bundle)
    assert (reply.pid, reply.exit_status) == (created.pid, 137)
    assert abs(reply.exited_at.seconds - time.time()) < 60
    await wait_gone([created.pid], 5)
    assert not [m for m in mount_points() if m.startswith(str(bundle))]
    assert not os.path.exists(socket_path(rig.address))  # noqa: PTH110
    assert not list(rig.runc_root.glob("*/*"))


async def test_it_is_idempotent(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    created = await rig.run(task, bundle)
    await kill_daemon(rig)
    for _ in range(10):
        assert (await delete(rig, bundle)).pid == created.pid


async def test_of_a_container_that_never_was_it_is_nothing(rig: Rig) -> None:
    bundle = rig.root / "never"
    bundle.mkdir()
    reply = await delete(rig, bundle)
    assert (reply.pid, reply.exit_status) == (0, 137)


async def test_of_one_container_of_a_pod_it_harms_no_other(rig: Rig) -> None:
    def pod(config: dict[str, object]) -> None:
        config["annotations"] = {"io.kubernetes.cri.sandbox-id": "pod1"}

    bundles = [rig.bundle(id_, "sleep", "1000", change=pod) for id_ in ("c1", "c2")]
    task = await rig.start(bundles[0])
    created = [await rig.run(task, bundle) for bundle in bundles]
    await task.Kill(KillRequest(id="c1", signal=9), timeout=5)
    await task.Wait(WaitRequest(id="c1"), timeout=10)
    await task.Delete(DeleteRequest(id="c1"), timeout=10)
    assert (await delete(rig, bundles[0])).pid == created[0].pid
    assert alive(created[1].pid)
    assert (await task.State(StateRequest(id="c2"), timeout=5)).pid == created[1].pid


async def test_the_bundle_is_found_beside_the_working_directory_too(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    created = await rig.run(task, bundle)
    elsewhere = rig.root / "elsewhere"
    elsewhere.mkdir()
    os.kill(rig.daemons[0], signal.SIGKILL)
    done = await rig.call_shim(elsewhere, "-id", "c1", "delete")
    assert DeleteResponse.FromString(done.stdout).pid == created.pid


async def test_the_rootfs_is_mounted_at_create_and_undone_at_delete(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sh", "-c", "echo written > /file", change=own_rootfs)
    task = await rig.start(bundle)
    await rig.run(task, bundle, rootfs=[overlay(rig)])
    assert str(bundle / "rootfs") in mount_points()
    assert (await task.Wait(WaitRequest(id="c1"), timeout=10)).exit_status == 0
    await task.Delete(DeleteRequest(id="c1"), timeout=10)
    assert str(bundle / "rootfs") not in mount_points()
    assert (rig.root / "upper/file").read_text() == "written\n"


async def test_a_create_that_fails_leaves_no_mount(rig: Rig) -> None:
    bundle = rig.bundle("c1", "/no/such/program", change=own_rootfs)
    task = await rig.start(bundle)
    with pytest.raises(GRPCError, match="no such file"):
        await task.Create(rig.create_request(bundle, rootfs=[overlay(rig)]), timeout=20)
    assert str(bundle / "rootfs") not in mount_points()
