from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from shim.linux import loops
from shim.linux.loops import attached
from tests.loopdevices import attached_below, wait_detached

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/loop-control").exists(), reason="loop devices need root"
)


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "image"
    path.write_bytes(b"x" * (1 << 20))
    return str(path)


def test_the_device_is_the_file_while_the_block_lasts(image: str) -> None:
    with attached(image, read_only=False) as device:
        assert Path(device).read_bytes() == Path(image).read_bytes()
        with open(device, "r+b") as file:
            file.write(b"written")
        (found,) = attached_below(image)
        assert (found / "autoclear").read_text() == "1\n"
    wait_detached(image)
    assert Path(image).read_bytes().startswith(b"writtenx")


def test_a_read_only_device_takes_no_writing(image: str) -> None:
    Path(image).chmod(0o444)
    with attached(image, read_only=True) as device:
        fd = os.open(device, os.O_RDWR)
        with pytest.raises(OSError, match="not permitted"):
            os.write(fd, b"x" * 512)
        os.close(fd)
    wait_detached(image)


@pytest.mark.parametrize("old", [False, True])
def test_direct_io_and_autoclear_are_set_on_old_kernels_too(
    image: str, *, old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old:  # a call that no kernel knows
        monkeypatch.setattr(loops, "_LOOP_CONFIGURE", 0x4CEE)
    with attached(image, read_only=True, direct_io=True) as device:
        (found,) = attached_below(image)
        assert [(found / name).read_text() for name in ("autoclear", "dio")] == ["1\n", "1\n"]
        assert (found.parent / "ro").read_text() == "1\n"
        assert Path(device).stat().st_rdev
    wait_detached(image)


def test_an_image_that_is_not_there_is_named_and_costs_no_device(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="missing"), attached(missing, read_only=True):
        pass


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    null = attached("/dev/null", read_only=False)
    with pytest.raises(OSError, match="cannot attach") as caught, null:
        pass
    assert caught.value.errno == errno.EINVAL


def test_two_that_look_at_once_get_two_devices(image: str) -> None:
    many = 16
    together = Barrier(many)

    def attach(_number: int) -> str:
        together.wait()
        with attached(image, read_only=True) as device:
            together.wait()
            return device

    with ThreadPoolExecutor(many) as pool:
        assert len(set(pool.map(attach, range(many)))) == many
    wait_detached(image)
