"""Snapshotters with an image file as the rootfs, which the shim attaches to a loop device."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import leaving_nothing, open_containerd
from tests.e2e.containerd import Containerd
from tests.e2e.ctr import Ctr
from tests.e2e.managers import MANAGERS
from tests.e2e.test_restart import shim_pids
from tests.e2e.waiting import wait_until
from tests.loopdevices import attached_below
from tests.matrix import record_manager

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e
SCENARIO = "Snapshotters"

SNAPSHOTTER = ("--snapshotter", "blockfile")


class BlockContainerd(Containerd):
    def _config(self) -> str:
        scratch = self.root / "scratch"
        if not scratch.exists():
            with scratch.open("wb") as file:
                file.truncate(32 << 20)
            subprocess.run(["mkfs.ext4", "-q", str(scratch)], check=True)
        return f"""{super()._config()}
[plugins."io.containerd.snapshotter.v1.blockfile"]
root_path = "{self.root}/blocks"
scratch_file = "{scratch}"
fs_type = "ext4"
mount_options = []
recreate_scratch = true
"""


@pytest.fixture(
    scope="module",
    params=[manager for manager in MANAGERS if not manager.version or manager.version >= (2,)],
    ids=str,
)
def _blocks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ctr]:
    scratch = tmp_path_factory.mktemp("image")
    with open_containerd(scratch, request.param, BlockContainerd) as daemon:
        ctr = Ctr(daemon)
        ctr.ok("images", "import", "--local", *SNAPSHOTTER, scratch / "busybox.tar")
        yield ctr


@pytest.fixture
def ctr(_blocks: Ctr, request: pytest.FixtureRequest) -> Iterator[Ctr]:
    record_manager(request, _blocks.containerd.manager.name)
    with leaving_nothing(_blocks, request):
        yield _blocks
        wait_until("no image file is attached", lambda: not devices(_blocks))


def devices(ctr: Ctr) -> list[str]:
    """Find the loop devices of this containerd's files."""
    return [str(device) for device in attached_below(str(ctr.containerd.root))]


def test_a_rootfs_in_an_image_file_is_the_containers_own(ctr: Ctr) -> None:
    script = "grep ' / ' /proc/mounts; echo written > /file; cat /file"
    result = ctr.run("--rm", *SNAPSHOTTER, "--", ctr.new_id(), "sh", "-c", script)
    assert result.code == 0, result
    root, said = result.text.splitlines()
    assert root.startswith("/dev/loop")
    assert " / ext4 rw" in root
    assert said == "written"


def test_the_device_is_attached_as_long_as_the_task_is_there(ctr: Ctr) -> None:
    container = ctr.start("sleep", "1000", flags=SNAPSHOTTER)
    assert len(devices(ctr)) == 1
    ctr.kill(container)
    ctr.wait_state(container, "STOPPED")
    assert len(devices(ctr)) == 1
    ctr.ok("task", "rm", container)
    wait_until("the device is free", lambda: not devices(ctr))


@pytest.mark.mortal
def test_a_shim_that_died_leaves_no_device(ctr: Ctr) -> None:
    ctr.start("sleep", "1000", flags=("--null-io", *SNAPSHOTTER))
    (shim,) = shim_pids(ctr)
    os.kill(shim, signal.SIGKILL)
    wait_until("containerd has cleaned up", lambda: not devices(ctr))
