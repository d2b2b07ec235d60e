"""Mounts of a rootfs with the real kernel and the real helpers; nothing is left after any."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from shim.container import rootfs as rootfs_module
from shim.container.rootfs import MountFailedError, mount_rootfs, unmount_rootfs, user_namespace
from shim.errors import InvalidError, NotFoundError, TimedOutError, UnsupportedError
from shim.linux import libc
from shim.linux.idmap import parse_idmap
from shim.linux.layers import layers_of
from shim.linux.mountinfo import mounts_below, read
from shim.linux.mounts import Mount, is_mounted, mount_all, unmount_all
from shim.offthread import wait_unchanged
from shim.reaper import Reaper, open_reaper
from tests.kernel import maps_owners
from tests.loopdevices import attached_below, wait_detached

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

IDS = ["uidmap=0:100000:1000,2000:200000:10", "gidmap=0:300000:1000"]
FIRST, FIRST_GROUP = 100000, 300000
NOBODY = 65534


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """A directory on a tmpfs, whose owners can be mapped."""
    mount_all([Mount("tmpfs", "tmpfs", "", ["mode=755", "rprivate"])], str(tmp_path))
    (tmp_path / "rootfs").mkdir()
    try:
        yield tmp_path
        unmount_all(str(tmp_path / "rootfs"))
        assert mounts_below(str(tmp_path)) == [str(tmp_path)]
        assert not Path(layers_of(str(tmp_path / "rootfs"))).exists()
    finally:
        unmount_all(str(tmp_path))


@pytest.fixture
async def reaper() -> AsyncIterator[Reaper]:
    async with open_reaper() as reaper:
        yield reaper


def layer(path: Path, **owners: int) -> Path:
    """Make a directory of files, each named for its contents, with these owners."""
    path.mkdir()
    for name, owner in owners.items():
        (path / name).write_text(name)
        os.chown(path / name, owner, owner)
    return path


def owners(path: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_uid, p.stat().st_gid) for p in path.iterdir()}


def overlay(work: Path, *lower: Path, options: list[str]) -> Mount:
    for name in ("upper", "work"):
        (work / name).mkdir()
    os.chown(work / "upper", FIRST, FIRST_GROUP)
    names = ":".join(str(path).replace(":", r"\:") for path in lower)
    upper = [f"upperdir={work}/upper", f"workdir={work}/work"]
    return Mount("overlay", "overlay", "", [*options, *upper, f"lowerdir={names}"])


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


# -- helpers -----------------------------------------------------------------------


@pytest.fixture
def helper(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on PATH before all others, for helpers of the test's own."""
    directory = work / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("kind", ["fuse", "fuse3"])
async def test_a_helper_gets_the_words_of_the_mount(
    work: Path, reaper: Reaper, helper: Path, kind: str
) -> None:
    script(helper / f"mount.{kind}", f'printf "%s\\n" "$PWD" "$@" > {work}/words')
    (work / "rootfs/sub").mkdir()
    mount = Mount(f"{kind}.my.fs", "the source", "sub", ["ro", "a=b c", "X-containerd"])
    await mount_rootfs([mount], str(work / "rootfs"), reaper, directory=str(work))
    assert (work / "words").read_text().splitlines() == [
        *(str(work), "the source", f"{work}/rootfs/sub"),
        *("-o", "ro", "-o", "a=b c", "-o", "X-containerd", "-t", "my.fs"),
    ]


async def test_a_helper_that_fails_is_quoted(work: Path, reaper: Reaper, helper: Path) -> None:
    script(helper / "mount.fuse3", "echo said; echo why >&2; exit 3")
    with pytest.raises(MountFailedError, match=r"(?s)mount.fuse3 s .* exit status 3: said\nwhy$"):
        await mount_rootfs([Mount("fuse3.x", "s")], str(work / "rootfs"), reaper)


async def test_a_helper_that_talks_without_end_is_read_and_not_kept(
    work: Path, reaper: Reaper, helper: Path
) -> None:
    script(helper / "mount.fuse3", "head -c 50000000 /dev/zero | tr '\\0' x; exit 1")
    with pytest.raises(MountFailedError) as caught:
        await mount_rootfs([Mount("fuse3.x", "s")], str(work / "rootfs"), reaper)
    assert len(str(caught.value)) < 2000


async def test_a_helper_that_is_not_there_is_named(
    work: Path, reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(work))
    with pytest.raises(NotFoundError, match=r'"mount.fuse3": executable file not found in \$PATH'):
        await mount_rootfs([Mount("fuse3.x", "s")], str(work / "rootfs"), reaper)


@pytest.mark.usefixtures("subreaper")
async def test_a_helper_that_hangs_ends_with_its_children(
    work: Path, reaper: Reaper, helper: Path
) -> None:
    script(helper / "mount.fuse3", f"sleep 1000 & echo $! > {work}/pid; wait")
    with pytest.raises(TimedOutError, match=r"did not return within 0\.5 s and was killed"):
        await mount_rootfs([Mount("fuse3.x", "s")], str(work / "rootfs"), reaper, limit=0.5)
    with trio.fail_after(10):
        while Path(f"/proc/{(work / 'pid').read_text().strip()}").exists():
            await trio.sleep(0.01)


@pytest.mark.usefixtures("subreaper")
async def test_a_file_system_in_user_space_ends_when_it_is_unmounted(
    work: Path, reaper: Reaper
) -> None:
    if shutil.which("fuse-overlayfs") is None or shutil.which("mount.fuse3") is None:
        pytest.skip("needs fuse3 and fuse-overlayfs")
    lower = layer(work / "lower", file=5)
    (work / "rootfs/sub").mkdir()
    mounts = [
        Mount("tmpfs", "below", "", ["mode=755"]),
        Mount("fuse3.fuse-overlayfs", "overlay", "", overlay(work, lower, options=[]).options),
        Mount("tmpfs", "above", "file", []),
    ]
    # In this order only is there a file to be the third one's mount point.
    with pytest.raises(OSError, match="Not a directory"):
        await mount_rootfs(mounts, str(work / "rootfs"), reaper)
    unmount_all(str(work / "rootfs"))
    await mount_rootfs(mounts[:2], str(work / "rootfs"), reaper)
    assert owners(work / "rootfs") == {"file": (5, 5)}
    server = _server_of(str(work / "rootfs"))
    unmount_all(str(work / "rootfs"))
    assert not is_mounted(str(work / "rootfs"))
    with trio.fail_after(10):
        while Path(f"/proc/{server}").exists():
            await trio.sleep(0.01)


@pytest.mark.usefixtures("subreaper")
async def test_a_file_system_whose_process_hangs_is_unmounted_too(
    work: Path, reaper: Reaper
) -> None:
    if shutil.which("fuse-overlayfs") is None or shutil.which("mount.fuse3") is None:
        pytest.skip("needs fuse3 and fuse-overlayfs")
    options = overlay(work, layer(work / "lower", file=5), options=[]).options
    (work / "lower/sub").mkdir()
    mounts = [
        Mount("fuse3.fuse-overlayfs", "overlay", "", options),
        Mount("tmpfs", "inside", "sub"),
    ]
    await mount_rootfs(mounts, str(work / "rootfs"), reaper)
    server = _server_of(str(work / "rootfs"))
    os.kill(server, signal.SIGSTOP)
    try:
        with trio.fail_after(10):
            await unmount_rootfs(str(work / "rootfs"))
        assert not is_mounted(str(work / "rootfs"))
    finally:
        os.kill(server, signal.SIGCONT)
    with trio.fail_after(10):
        while Path(f"/proc/{server}").exists():
            await trio.sleep(0.01)


@pytest.mark.usefixtures("subreaper")
async def test_a_target_inside_a_file_system_that_hangs_holds_no_other_task(
    work: Path, reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("fuse-overlayfs") is None or shutil.which("mount.fuse3") is None:
        pytest.skip("needs fuse3 and fuse-overlayfs")
    monkeypatch.setattr(rootfs_module, "MOUNT", 0.5)
    options = overlay(work, layer(work / "lower", file=5), options=[]).options
    mount = Mount("fuse3.fuse-overlayfs", "overlay", "", options)
    await mount_rootfs([mount], str(work / "rootfs"), reaper)
    server = _server_of(str(work / "rootfs"))
    os.kill(server, signal.SIGSTOP)
    try:
        inside = Mount("fuse3.fuse-overlayfs", "overlay", "not/seen/yet", options)
        with trio.fail_after(10), pytest.raises(TimedOutError, match="resolve not/seen/yet"):
            await mount_rootfs([inside], str(work / "rootfs"), reaper)
    finally:
        os.kill(server, signal.SIGCONT)
    await unmount_rootfs(str(work / "rootfs"))


async def test_a_late_undo_of_a_mount_leaves_a_newer_mount_alone(
    work: Path, reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that responds after the limit, while the manager has tried again."""
    entered, respond = threading.Event(), threading.Event()

    def hanging(*args: str | int) -> None:
        entered.set()
        respond.wait(30)
        mount(*args)  # type: ignore[arg-type]

    mount = libc.mount
    rootfs = str(work / "rootfs")
    monkeypatch.setattr(rootfs_module, "MOUNT", 0.2)
    monkeypatch.setattr(libc, "mount", hanging)
    with pytest.raises(TimedOutError):
        await mount_rootfs([Mount("tmpfs", "old")], rootfs, reaper)
    assert entered.is_set()
    await unmount_rootfs(rootfs)
    monkeypatch.setattr(libc, "mount", mount)
    with pytest.raises(TimedOutError, match="an earlier operation on it has not ended"):
        await mount_rootfs([Mount("tmpfs", "new")], rootfs, reaper)
    assert not is_mounted(rootfs)
    monkeypatch.setattr(rootfs_module, "MOUNT", 30)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount_rootfs, [Mount("tmpfs", "new", "", ["mode=711"])], rootfs, reaper)
        respond.set()
    await wait_unchanged(rootfs, 30)
    assert mounts_below(rootfs) == [rootfs]
    assert stat.S_IMODE(Path(rootfs).stat().st_mode) == 0o711


def _server_of(rootfs: str) -> int:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        words = path.read_bytes().split(b"\0")
        if words[0].endswith(b"fuse-overlayfs") and rootfs.encode() in words:
            return int(path.parent.name)
    raise AssertionError("no file system serves the rootfs")


# -- what a killed shim leaves ---------------------------------------------------------


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
