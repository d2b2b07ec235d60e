"""Files that others write are read within a bound."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from shim.linux.files import read_tail, read_whole

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_within_the_limit_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for size in (0, 1, 9, 10):
        path.write_bytes(b"x" * size)
        assert read_whole(str(path), 10) == b"x" * size
    path.write_bytes(b"x" * 11)
    with pytest.raises(OSError, match="longer than 10 bytes") as caught:
        read_whole(str(path), 10)
    assert caught.value.errno == errno.EFBIG


def test_of_a_long_file_the_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for text in (b"", b"abc", b"0123456789", b"0123456789abc"):
        path.write_bytes(text)
        assert read_tail(str(path), 10) == text[-10:]


def test_a_file_of_terabytes_costs_its_tail(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write(b"the end")
    assert read_tail(str(path), 7) == b"the end"


@pytest.mark.parametrize("read", [read_whole, read_tail])
def test_what_is_no_file_holds_nobody(tmp_path: Path, read: object) -> None:
    assert callable(read)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (str(fifo), "/dev/zero", str(tmp_path)):
        with pytest.raises(OSError, match="not a regular file"):
            read(path, 10)
    with pytest.raises(FileNotFoundError):
        read(str(tmp_path / "nothing"), 10)


def test_a_file_of_the_kernels_is_read_though_it_says_it_is_empty() -> None:
    assert read_whole("/proc/self/stat", 4096).startswith(b"%d " % os.getpid())
