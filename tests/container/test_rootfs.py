"""Mounts of a rootfs with the real kernel and the real helpers; nothing is left after any."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shim.container.rootfs import mount_rootfs, user_namespace
from shim.errors import InvalidError, UnsupportedError
from shim.linux import libc
from shim.linux.idmap import parse_idmap
from shim.linux.layers import layers_of
from shim.linux.mountinfo import mounts_below, read
from shim.linux.mounts import Mount, is_mounted, mount_all, unmount_all
from tests.container.layers import FIRST, FIRST_GROUP, layer, overlay, owners
from tests.kernel import maps_owners
from tests.loopdevices import attached_below, wait_detached

if TYPE_CHECKING:
    from shim.reaper import Reaper

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

IDS = ["uidmap=0:100000:1000,2000:200000:10", "gidmap=0:300000:1000"]
NOBODY = 65534


# -- owners ------------------------------------------------------------------------


@maps_owners
@pytest.mark.parametrize("flag", ["rw", "ro"])
async def test_a_bind_mount_shows_mapped_owners(work: Path, reaper: Reaper, flag: str) -> None:
    source = layer(work / "source", root=0, user=5, far=2003, outside=1500)
    mount = Mount("bind", str(source), "", ["rbind", flag, "nosuid", *IDS])
    await mount_rootfs([mount], str(work / "rootfs"), reaper)
    assert owners(work / "rootfs") == {
        "root": (FIRST, FIRST_GROUP),
        "user": (FIRST + 5, FIRST_GROUP + 5),
        "far": (200003, NOBODY),
        "outside": (NOBODY, NOBODY),
    }
    flags = os.statvfs(work / "rootfs").f_flag
    assert bool(flags & os.ST_RDONLY) == (flag == "ro")
    assert flags & os.ST_NOSUID
    # One mount, not a mapped one on top of another.
    assert mounts_below(str(work / "rootfs")) == [str(work / "rootfs")]


@maps_owners
async def test_what_is_written_through_a_mapped_mount_has_its_owner_on_disk(
    work: Path, reaper: Reaper
) -> None:
    source = layer(work / "source")
    await mount_rootfs(
        [Mount("bind", str(source), "", ["rbind", *IDS])], str(work / "rootfs"), reaper
    )
    subprocess.run(
        ["touch", "new"],
        cwd=work / "rootfs",
        user=FIRST,
        group=FIRST_GROUP,
        extra_groups=[],
        check=True,
    )
    os.chown(work / "rootfs/new", FIRST + 7, FIRST_GROUP + 8)
    assert owners(source) == {"new": (7, 8)}


@maps_owners
@pytest.mark.parametrize("count", [1, 2, 300])
async def test_the_layers_of_an_overlay_are_mapped_and_its_upper_is_not(
    work: Path, reaper: Reaper, count: int
) -> None:
    base = work / ("x" * 100)
    base.mkdir()
    lower = [layer(base / f"{'y' * 60}:{i}", **{f"f{i}": i % 100, "top": i}) for i in range(count)]
    mount = overlay(work, *lower, options=IDS)
    here = Path.cwd()
    before = len(read())
    await mount_rootfs([mount], str(work / "rootfs"), reaper)
    assert Path.cwd() == here
    assert len(read()) == before + 1
    assert not Path(layers_of(str(work / "rootfs"))).exists()
    found = owners(work / "rootfs")
    assert len(found) == count + 1
    for i in range(count):
        assert found[f"f{i}"] == (FIRST + i % 100, FIRST_GROUP + i % 100)
    assert (work / "rootfs/top").stat().st_uid == FIRST
    # A container's root writes, into the upper directory, as itself.
    (work / "rootfs/f0").write_text("changed")
    assert owners(work / "upper")["f0"] == (FIRST, FIRST_GROUP)
    assert (lower[0] / "f0").read_text() == "f0"


@maps_owners
async def test_a_layer_that_cannot_be_mapped_is_named_and_undoes_the_others(
    work: Path, reaper: Reaper
) -> None:
    good = layer(work / "good", file=0)
    mount = overlay(work, good, Path("/proc/sys"), options=IDS)
    before = read()
    with pytest.raises(UnsupportedError, match="/proc/sys cannot be mounted with mapped ids"):
        await mount_rootfs([mount], str(work / "rootfs"), reaper)
    assert read() == before


async def test_a_kernel_without_the_call_is_named(
    work: Path, reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = layer(work / "source", file=0)
    monkeypatch.setattr(libc, "_SYS_MOUNT_SETATTR", 9999)  # a call that no kernel has
    before = read()
    for mount in (
        Mount("bind", str(source), "", ["rbind", *IDS]),
        overlay(work, source, options=IDS),
    ):
        with pytest.raises(UnsupportedError, match=r"no mount_setattr\(2\); use Linux 5.12"):
            await mount_rootfs([mount], str(work / "rootfs"), reaper)
    assert read() == before


async def test_a_mapping_the_kernel_refuses_is_named(work: Path, reaper: Reaper) -> None:
    twice = ["uidmap=0:100000:10,5:200000:10", IDS[1]]
    with pytest.raises(InvalidError, match="cannot write the uid_map 0 100000 10,5 200000 10"):
        await mount_rootfs([Mount("tmpfs", "x", "", twice)], str(work / "rootfs"), reaper)


async def test_an_overlay_without_lower_directories_cannot_be_mapped(
    work: Path, reaper: Reaper
) -> None:
    mount = Mount("overlay", "overlay", "", [*IDS, "lowerdir+=/"])
    with pytest.raises(InvalidError, match="need the option lowerdir"):
        await mount_rootfs([mount], str(work / "rootfs"), reaper)


async def test_a_user_namespace_costs_no_process_and_no_fd(reaper: Reaper) -> None:
    fds = len(os.listdir("/proc/self/fd"))
    idmap = parse_idmap("0:1000:10", "0:2000:10")
    own = os.stat("/proc/self/ns/user")  # noqa: PTH116 - a link of the kernel's
    for _ in range(50):
        fd = user_namespace(reaper, idmap)
        assert os.fstat(fd).st_dev == own.st_dev
        assert os.fstat(fd).st_ino != own.st_ino
        os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == fds
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not [pid for pid in children if "Z" in Path(f"/proc/{pid}/stat").read_text()]


# -- loop devices ------------------------------------------------------------------


def image(work: Path, kind: str) -> str:
    """Make the image of a file system with one file, which is of user 5."""
    tree = layer(work / f"{kind}-tree", file=5)
    path = str(work / f"{kind}.img")
    if kind == "erofs":
        if shutil.which("mkfs.erofs") is None:
            pytest.skip("needs erofs-utils")
        subprocess.run(["mkfs.erofs", path, str(tree)], check=True, stdout=subprocess.DEVNULL)
    else:
        with open(path, "wb") as file:
            file.truncate(16 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-d", str(tree), path], check=True)
    return path


@pytest.mark.parametrize("options", [["rw"], ["ro"], ["ro", "direct-io"]])
async def test_an_image_file_is_mounted_by_a_loop_device(
    work: Path, reaper: Reaper, options: list[str]
) -> None:
    path = image(work, "ext4")
    rootfs = work / "rootfs"
    await mount_rootfs([Mount("ext4", path, "", ["loop", *options])], str(rootfs), reaper)
    assert owners(rootfs)["file"] == (5, 5)
    (device,) = attached_below(path)
    assert (device / "autoclear").read_text() == "1\n"
    if "ro" in options:
        with pytest.raises(OSError, match="Read-only"):
            (rootfs / "new").touch()
    else:
        (rootfs / "new").touch()
    unmount_all(str(rootfs))
    wait_detached(path)


@maps_owners
async def test_an_image_may_be_below_a_mapped_overlay(work: Path, reaper: Reaper) -> None:
    path = image(work, "erofs")
    (work / "rootfs/lower").mkdir()
    (work / "rootfs/merged").mkdir()
    mounts = [
        Mount("erofs", path, "lower", ["loop", "ro"]),
        Mount("overlay", "o", "merged", [f"lowerdir={work}/rootfs/lower:{work}/rootfs", *IDS]),
    ]
    await mount_rootfs(mounts, str(work / "rootfs"), reaper)
    assert owners(work / "rootfs/merged")["file"] == (FIRST + 5, FIRST_GROUP + 5)
    unmount_all(str(work / "rootfs"))
    wait_detached(path)


async def test_a_mapped_image_shows_mapped_owners(work: Path, reaper: Reaper) -> None:
    path = image(work, "ext4")
    mount = Mount("ext4", path, "", ["loop", *IDS])
    await mount_rootfs([mount], str(work / "rootfs"), reaper)
    assert owners(work / "rootfs")["file"] == (FIRST + 5, FIRST_GROUP + 5)
    unmount_all(str(work / "rootfs"))
    wait_detached(path)


async def test_an_image_that_holds_nothing_leaves_no_device(work: Path, reaper: Reaper) -> None:
    (work / "zeros").write_bytes(bytes(1 << 20))
    mount = Mount("ext4", str(work / "zeros"), "", ["loop"])
    with pytest.raises(OSError, match="cannot mount ext4"):
        await mount_rootfs([mount], str(work / "rootfs"), reaper)
    wait_detached(str(work / "zeros"))


# -- the remains of a killed shim ---------------------------------------------------------


async def test_layers_that_a_killed_shim_left_are_unmounted_and_removed(work: Path) -> None:
    rootfs = str(work / "rootfs")
    for number in range(3):
        (Path(layers_of(rootfs)) / str(number)).mkdir(parents=True)
    mount_all([Mount("tmpfs", "x", "0"), Mount("tmpfs", "y", "1")], layers_of(rootfs))
    assert is_mounted(rootfs)
    unmount_all(rootfs)
    assert not is_mounted(rootfs)
    unmount_all(rootfs)


async def test_a_file_among_such_layers_is_not_deleted(work: Path) -> None:
    rootfs = str(work / "rootfs")
    (Path(layers_of(rootfs)) / "0").mkdir(parents=True)
    (Path(layers_of(rootfs)) / "0/file").touch()
    with pytest.raises(OSError, match="not empty"):
        unmount_all(rootfs)
    assert (Path(layers_of(rootfs)) / "0/file").exists()
    shutil.rmtree(layers_of(rootfs))
