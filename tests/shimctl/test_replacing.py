from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from shim.text import explain
from shimctl.replacing import replace_file

if TYPE_CHECKING:
    from pathlib import Path


def test_a_reader_gets_the_old_content_or_the_new_one(tmp_path: Path) -> None:
    target = tmp_path / "file"
    contents = [bytes([n]) * 100_000 for n in (1, 2)]
    replace_file(target, contents[0], 0o600)
    done = threading.Event()

    def replace() -> None:
        for n in range(200):
            replace_file(target, contents[n % 2], 0o600)
        done.set()

    writer = threading.Thread(target=replace)
    writer.start()
    while not done.is_set():
        assert target.read_bytes() in contents
    writer.join()
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("umask", [0, 0o777])
@pytest.mark.parametrize("mode", [0o644, 0o4755])
def test_the_file_has_the_mode_and_the_owner(tmp_path: Path, umask: int, mode: int) -> None:
    target = tmp_path / "file"
    before = os.umask(umask)
    try:
        replace_file(target, b"", mode, (7, 8))
    finally:
        os.umask(before)
    found = target.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (mode, 7, 8)


def test_of_a_failed_replacement_nothing_remains(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        replace_file(target, b"", 0o600)
    assert explain(caught.value) == f"write {target}: is a directory"
    assert list(tmp_path.iterdir()) == [target]
