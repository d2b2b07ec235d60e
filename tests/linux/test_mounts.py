from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from shim.errors import InvalidError
from shim.linux.mountinfo import mount_points
from shim.linux.mounts import Mount, mount_all, resolve, unmount_all

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """A directory on a tmpfs, since overlay on overlay is not possible everywhere."""
    mount_all([Mount("tmpfs", "tmpfs", "", ["mode=755", "rprivate"])], str(tmp_path))
    try:
        yield tmp_path
    finally:
        unmount_all(str(tmp_path))
        assert not [point for point in mount_points() if point.startswith(str(tmp_path))]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", ""),
        ("/", ""),
        ("a/b", "/a/b"),
        ("../../etc", "/etc"),
        ("out/passwd", "/etc/passwd"),
        ("up/x", "/x"),
        ("inside/y", "/a/y"),
    ],
)
def test_a_target_stays_inside_its_root(tmp_path: Path, path: str, expected: str) -> None:
    (tmp_path / "out").symlink_to("/etc")
    (tmp_path / "up").symlink_to("../../..")
    (tmp_path / "a").mkdir()
    (tmp_path / "inside").symlink_to("a")
    assert resolve(str(tmp_path), path) == str(tmp_path) + expected


def test_a_circle_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(InvalidError):
        resolve(str(tmp_path), "a")


@needs_root
def test_a_read_only_bind_mount_is_read_only(work: Path) -> None:
    (work / "source").mkdir()
    (work / "rootfs").mkdir()
    mount_all([Mount("bind", str(work / "source"), "", ["rbind", "ro"])], str(work / "rootfs"))
    with pytest.raises(OSError, match="Read-only"):
        (work / "rootfs/file").touch()
    (work / "source/file").touch()
    assert (work / "rootfs/file").exists()


@needs_root
def test_a_bind_mount_takes_its_flags_without_ro_too(work: Path) -> None:
    (work / "source").mkdir()
    mount_all([Mount("bind", str(work / "source"), "source", ["bind", "nosuid"])], str(work))
    assert os.statvfs(work / "source").f_flag & os.ST_NOSUID


@needs_root
def test_a_remount_changes_a_mount_and_adds_none(work: Path) -> None:
    before = len(mount_points())
    mount_all([Mount("tmpfs", "tmpfs", "", ["remount", "ro"])], str(work))
    assert os.statvfs(work).f_flag & os.ST_RDONLY
    assert len(mount_points()) == before


@needs_root
def test_a_mount_that_fails_undoes_those_before_it(work: Path) -> None:
    (work / "rootfs").mkdir()
    wanted = [
        Mount("tmpfs", "tmpfs"),
        Mount("tmpfs", "tmpfs"),
        Mount("overlay", "overlay", "", ["lowerdir=/nowhere"]),
    ]
    before = mount_points()
    with pytest.raises(OSError, match="cannot mount overlay"):
        mount_all(wanted, str(work / "rootfs"))
    assert mount_points() == before


@needs_root
@pytest.mark.parametrize("count", [2, 400])
def test_overlay_takes_layers_with_long_names(work: Path, count: int) -> None:
    base = work / ("x" * 100)
    base.mkdir()
    layers = [base / f"{'y' * 60}:{i}" for i in range(count)]
    for i, layer in enumerate(layers):
        layer.mkdir()
        (layer / f"file-{i}").touch()
        (layer / "same").write_text(str(i))
    for name in ("upper", "work", "rootfs"):
        (work / name).mkdir()
    lower = ":".join(str(layer).replace(":", r"\:") for layer in layers)
    options = [f"lowerdir={lower}", f"upperdir={work}/upper", f"workdir={work}/work"]
    here = Path.cwd()
    scratch = set(Path("/run").glob("layers-*"))
    mount_all([Mount("overlay", "overlay", "", options)], str(work / "rootfs"))
    assert len(list((work / "rootfs").iterdir())) == count + 1
    assert (work / "rootfs/same").read_text() == "0"
    assert Path.cwd() == here
    assert set(Path("/run").glob("layers-*")) == scratch


@needs_root
def test_options_that_cannot_be_shortened_are_refused(work: Path) -> None:
    with pytest.raises(InvalidError, match="longer than"):
        mount_all([Mount("tmpfs", "tmpfs", "", ["x=" + "y" * 5000])], str(work))


@needs_root
@pytest.mark.parametrize("wrong", [{"source": "a\0b"}, {"target": "a\0"}, {"options": ["x=\0"]}])
def test_a_zero_byte_is_refused_and_cuts_nothing_off(work: Path, wrong: dict[str, Any]) -> None:
    mount = replace(Mount("tmpfs", "tmpfs"), **wrong)
    before = mount_points()
    with pytest.raises(InvalidError, match="NUL byte"):
        mount_all([mount], str(work))
    assert mount_points() == before


@needs_root
def test_everything_stacked_on_a_rootfs_is_unmounted(work: Path) -> None:
    rootfs = work / "a b\\c"
    (rootfs / "sub").mkdir(parents=True)
    neighbour = work / "a b\\c-2"
    neighbour.mkdir()
    mount_all([Mount("tmpfs", "tmpfs")], str(neighbour))
    mount_all([Mount("tmpfs", "tmpfs", "sub")], str(rootfs))
    mount_all([Mount("tmpfs", "tmpfs")], str(rootfs))
    (rootfs / "sub").mkdir()
    mount_all([Mount("tmpfs", "tmpfs", "sub"), Mount("tmpfs", "tmpfs", "sub")], str(rootfs))
    unmount_all(str(rootfs))
    assert [point for point in mount_points() if point.startswith(str(rootfs))] == [str(neighbour)]


@needs_root
def test_a_busy_mount_is_unmounted_too(work: Path) -> None:
    (work / "rootfs").mkdir()
    mount_all([Mount("tmpfs", "tmpfs")], str(work / "rootfs"))
    with (work / "rootfs/busy").open("w"):
        unmount_all(str(work / "rootfs"))
    assert str(work / "rootfs") not in mount_points()


@needs_root
def test_unmounting_does_not_follow_a_link(work: Path) -> None:
    (work / "victim").mkdir()
    mount_all([Mount("tmpfs", "tmpfs", "victim")], str(work))
    (work / "rootfs").symlink_to(work / "victim")
    unmount_all(str(work / "rootfs"))
    assert str(work / "victim") in mount_points()


def test_unmounting_nothing_is_no_error(tmp_path: Path) -> None:
    unmount_all(str(tmp_path))
    unmount_all(str(tmp_path / "missing/rootfs"))
