"""Mounts by a helper program, and file systems that a process serves."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from shim.container import rootfs as rootfs_module
from shim.container.rootfs import MountFailedError, mount_rootfs, unmount_rootfs
from shim.errors import NotFoundError, TimedOutError
from shim.linux import libc
from shim.linux.mountinfo import mounts_below
from shim.linux.mounts import Mount, is_mounted, unmount_all
from shim.offthread import wait_unchanged
from tests.commandlines import command_lines
from tests.container.layers import layer, overlay, owners
from tests.e2e.waiting import PATIENCE

if TYPE_CHECKING:
    from shim.reaper import Reaper

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
needs_fuse = pytest.mark.skipif(
    shutil.which("fuse-overlayfs") is None or shutil.which("mount.fuse3") is None,
    reason="needs fuse3 and fuse-overlayfs",
)


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
    limit = 0.5 * PATIENCE  # by then the shell and its child have started
    killed = re.escape(f"did not return within {limit:g} s and was killed")
    with pytest.raises(TimedOutError, match=killed):
        await mount_rootfs([Mount("fuse3.x", "s")], str(work / "rootfs"), reaper, limit=limit)
    with trio.fail_after(10 * PATIENCE):
        while Path(f"/proc/{(work / 'pid').read_text().strip()}").exists():
            await trio.sleep(0.01)


@needs_fuse
@pytest.mark.usefixtures("subreaper")
async def test_a_file_system_in_user_space_ends_when_it_is_unmounted(
    work: Path, reaper: Reaper
) -> None:
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


@needs_fuse
@pytest.mark.usefixtures("subreaper")
async def test_a_file_system_whose_process_hangs_is_unmounted_too(
    work: Path, reaper: Reaper
) -> None:
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


@needs_fuse
@pytest.mark.usefixtures("subreaper")
async def test_a_target_inside_a_file_system_that_hangs_holds_no_other_task(
    work: Path, reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    for pid, words in command_lines():
        if words[0].endswith(b"fuse-overlayfs") and rootfs.encode() in words:
            return pid
    raise AssertionError("no file system serves the rootfs")
