"""A rootfs of each kind that managers send, through the shim: made at Create, gone afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from grpclib.exceptions import GRPCError

from shim.api.mount_pb2 import Mount
from shim.api.task_pb2 import DeleteRequest, WaitRequest
from shim.linux.layers import layers_of
from shim.linux.mountinfo import mounts_below
from shim.linux.mounts import Mount as Plain
from shim.linux.mounts import mount_all
from tests.commandlines import command_lines
from tests.kernel import maps_owners
from tests.loopdevices import attached_below
from tests.process.configs import own_rootfs
from tests.process.rig import Rig, alive, wait_gone
from tests.process.steps import kill_daemon
from tests.process.test_delete import delete

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

FIRST = 100000
IDS = [f"uidmap=0:{FIRST}:65536", f"gidmap=0:{FIRST}:65536"]
OWNER = ["sh", "-c", "stat -c %u:%g /bin/busybox >&2; sleep 1000"]


def bind(rig: Rig) -> Mount:
    return Mount(type="bind", source=str(rig.rootfs()), options=["rbind", "rw", *IDS])


def overlay(rig: Rig) -> Mount:
    for name in ("upper", "work"):
        (rig.root / name).mkdir()
    os.chown(rig.root / "upper", FIRST, FIRST)
    (rig.root / "empty").mkdir()
    lower = f"lowerdir={rig.root}/empty:{rig.rootfs()}"
    upper = [f"upperdir={rig.root}/upper", f"workdir={rig.root}/work"]
    return Mount(type="overlay", source="overlay", options=[*IDS, *upper, lower])


def ext4(rig: Rig) -> Mount:
    image = rig.root / "image"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-d", str(rig.rootfs()), str(image)], check=True)
    return Mount(type="ext4", source=str(image), options=["loop", "direct-io"])


def erofs(rig: Rig) -> Mount:
    command = ["mkfs.erofs", str(rig.root / "image"), str(rig.rootfs())]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return Mount(type="erofs", source=str(rig.root / "image"), options=["loop", "ro", *IDS])


def fuse(rig: Rig) -> Mount:
    (rig.root / "empty").mkdir()
    options = [f"lowerdir={rig.root}/empty:{rig.rootfs()}", "allow_other"]
    return Mount(type="fuse3.fuse-overlayfs", source="overlay", options=options)


# With the owner of the rootfs that the container sees.
KINDS = [
    pytest.param(bind, FIRST, marks=maps_owners),
    pytest.param(overlay, FIRST, marks=maps_owners),
    pytest.param(ext4, 0),
    pytest.param(erofs, FIRST, marks=maps_owners),
    pytest.param(fuse, 0),
]


def devices(rig: Rig) -> list[str]:
    """Find the loop devices that the files of this rig are attached to."""
    return [str(device) for device in attached_below(str(rig.root))]


def servers(rig: Rig) -> list[int]:
    """Find the processes that serve file systems of this rig."""
    root = bytes(rig.root)
    return [
        pid
        for pid, words in command_lines()
        if words[0].startswith(b"fuse-overlayfs") and any(root in word for word in words)
    ]


async def run(rig: Rig, make: Callable[[Rig], Mount]) -> tuple[Any, Path, int]:
    """Run a container on such a rootfs; return the client, the bundle and the init's pid."""
    if shutil.which("mkfs.erofs") is None or shutil.which("fuse-overlayfs") is None:
        pytest.skip("needs erofs-utils, fuse3 and fuse-overlayfs")
    bundle = rig.bundle("c1", *OWNER, change=own_rootfs)
    for directory in ("proc", "sys", "dev"):  # runc may not make them in each kind
        (rig.rootfs() / directory).mkdir()
    task = await rig.start(bundle)
    stderr = f"file://{rig.root}/said"
    created = await rig.run(task, bundle, rootfs=[make(rig)], stdout=stderr, stderr=stderr)
    return task, bundle, created.pid


async def said(rig: Rig) -> str:
    with trio.fail_after(20):
        while not (text := (rig.root / "said").read_text()).endswith("\n"):
            await trio.sleep(0.01)
    return text.strip()


@pytest.mark.parametrize(("make", "owner"), KINDS, ids=lambda v: getattr(v, "__name__", ""))
async def test_after_delete_nothing_of_the_rootfs_is_left(
    rig: Rig, make: Callable[[Rig], Mount], owner: int
) -> None:
    task, bundle, pid = await run(rig, make)
    assert await said(rig) == f"{owner}:{owner}"
    assert str(bundle / "rootfs") in mounts_below(str(bundle))
    assert len(devices(rig)) == (make in (ext4, erofs))
    helpers = servers(rig)
    assert len(helpers) == (make is fuse)
    os.kill(pid, signal.SIGKILL)
    await task.Wait(WaitRequest(id="c1"), timeout=10)
    await task.Delete(DeleteRequest(id="c1"), timeout=10)
    assert not mounts_below(str(bundle))
    assert not Path(layers_of(str(bundle / "rootfs"))).exists()
    await wait_gone(helpers)
    with trio.fail_after(10):
        while devices(rig):
            await trio.sleep(0.01)


@pytest.mark.parametrize(("make", "owner"), KINDS, ids=lambda v: getattr(v, "__name__", ""))
async def test_delete_undoes_it_when_the_shim_is_dead(
    rig: Rig, make: Callable[[Rig], Mount], owner: int
) -> None:
    _task, bundle, pid = await run(rig, make)
    assert await said(rig) == f"{owner}:{owner}"
    helpers = servers(rig)
    await kill_daemon(rig)
    await delete(rig, bundle)
    assert not mounts_below(str(bundle))
    await wait_gone([pid, *helpers])
    with trio.fail_after(10):
        while devices(rig):
            await trio.sleep(0.01)


async def test_delete_undoes_a_create_that_was_killed_between_two_layers(rig: Rig) -> None:
    bundle = rig.bundle("c1", "true", change=own_rootfs)
    layers = Path(layers_of(str(bundle / "rootfs")))
    (layers / "0").mkdir(parents=True)
    (layers / "1").mkdir()
    mount_all([Plain("bind", str(rig.rootfs()), "0", ["rbind", "ro"])], str(layers))
    await delete(rig, bundle)
    assert not mounts_below(str(bundle))
    assert not layers.exists()
    assert (rig.rootfs() / "bin/busybox").exists()


@pytest.mark.parametrize(
    ("mount", "text"),
    [
        (Mount(type="bind", source="/", options=["rbind", IDS[0]]), "need each other"),
        (Mount(type="overlay", options=[*IDS, "lowerdir=/proc/sys:/sys"]), "/proc/sys cannot be"),
        (Mount(type="ext4", source="/nowhere", options=["loop"]), "/nowhere"),
        (Mount(type="fuse.nothing", source="x"), "(?s)mount helper mount.fuse x .*nothing"),
        (Mount(type="tmpfs", options=["X-containerd.y"]), "was not consumed by the mount man"),
    ],
    ids=lambda value: getattr(value, "type", ""),
)
async def test_a_create_that_cannot_mount_names_the_reason_and_leaves_nothing(
    rig: Rig, mount: Mount, text: str
) -> None:
    bundle = rig.bundle("c1", "true", change=own_rootfs)
    task = await rig.start(bundle)
    below = Mount(type="tmpfs", source="below")
    with pytest.raises(GRPCError, match=text) as caught:
        await task.Create(rig.create_request(bundle, rootfs=[below, mount]), timeout=20)
    assert "\n" not in str(caught.value.message)
    assert not mounts_below(str(bundle))
    assert alive(rig.daemons[0])
