from __future__ import annotations

import errno
import os
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shimctl.host.inroot import open_inside, read_regular, root_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """Make a root with a file ``etc/passwd``, and a file of the same name outside of it."""
    rootfs = tmp_path / "rootfs"
    for root, text in ((rootfs, "inside"), (tmp_path, "outside")):
        (root / "etc").mkdir(parents=True)
        (root / "etc/passwd").write_text(text)
    return rootfs


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_PATH)
    before = len(os.listdir("/proc/self/fd"))
    try:
        yield fd
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "target",
    [
        "/etc/passwd",
        "../etc/passwd",
        "../../../etc/passwd",
        "/../etc/passwd",
        "/link/../etc/./passwd",
        "/loop/../etc/passwd",
    ],
)
def test_a_link_leads_to_the_containers_own_file(rootfs: Path, target: str) -> None:
    (rootfs / "d").mkdir()
    (rootfs / "link").symlink_to("/d")
    (rootfs / "loop").symlink_to("link")
    (rootfs / "d/passwd").symlink_to(target)
    with opened(rootfs) as root:
        assert read_regular(root, "link/passwd", 100) == b"inside"
        assert read_regular(root, "/d/passwd", 3) == b"ins"


def test_a_link_of_proc_is_followed_by_its_text(rootfs: Path) -> None:
    (rootfs / "root").symlink_to(f"/proc/{os.getpid()}/root")
    with opened(rootfs) as root, pytest.raises(FileNotFoundError):
        read_regular(root, "root/etc/passwd", 100)


def test_what_is_no_regular_file_is_an_error(rootfs: Path) -> None:
    (rootfs / "loop").symlink_to("loop")
    os.mkfifo(rootfs / "fifo")
    cases = {
        "loop": errno.ELOOP,
        "fifo": errno.EINVAL,
        "etc": errno.EINVAL,
        "": errno.EINVAL,
        "none": errno.ENOENT,
        "none/..": errno.ENOENT,
        "etc/passwd/x": errno.ENOTDIR,
        "etc/passwd/..": errno.ENOTDIR,
    }
    with opened(rootfs) as root:
        for path, number in cases.items():
            with pytest.raises(OSError, match=r"\[Errno") as caught:
                read_regular(root, path, 100)
            assert caught.value.errno == number, path


def test_a_directory_that_becomes_a_link_never_leads_out(rootfs: Path) -> None:
    (rootfs / "real").mkdir()
    (rootfs / "real/passwd").write_text("inside")
    (rootfs / "a").symlink_to("real")

    def swap() -> None:
        outside = f"../{rootfs.parent.name}/etc"
        for _ in range(1000):
            for target in ("real", str(rootfs.parent / "etc"), outside):
                (rootfs / "new").symlink_to(target)
                (rootfs / "new").rename(rootfs / "a")

    swapping = threading.Thread(target=swap)
    swapping.start()
    found = set()
    try:
        with opened(rootfs) as root:
            while swapping.is_alive():
                try:
                    found.add(read_regular(root, "a/passwd", 100))
                except OSError:
                    continue
    finally:
        swapping.join()
    assert found == {b"inside"}


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside"])
def test_a_file_that_becomes_a_link_just_before_it_is_opened_is_refused(
    rootfs: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    (rootfs.parent / "outside").write_text("outside")
    (rootfs / "file").write_text("inside")
    (rootfs / "link").symlink_to(target)
    real = os.open

    def swap_and_open(path: str, flags: int, *, dir_fd: int) -> int:
        if path == "file" and not flags & os.O_PATH:
            (rootfs / "link").rename(rootfs / "file")
        return real(path, flags, dir_fd=dir_fd)

    with opened(rootfs) as root:
        monkeypatch.setattr(os, "open", swap_and_open)
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            read_regular(root, "file", 100)
        monkeypatch.undo()
    assert caught.value.errno == errno.ELOOP
    assert (rootfs / "file").is_symlink()


def test_the_root_is_that_of_the_process() -> None:
    with root_of(os.getpid()) as root:
        fd = open_inside(root, "/etc", os.O_PATH)
        assert os.path.samestat(os.fstat(fd), Path("/etc").stat())
        os.close(fd)
    with pytest.raises(FileNotFoundError), root_of(1 << 30):
        pass
