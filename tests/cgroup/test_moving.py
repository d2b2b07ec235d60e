"""The thread that has the kernel ready for a move: it is one thread, it ends soon, and it moves
no process.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shim.cgroup import moving
from shim.cgroup.find import own_threads_file
from shim.cgroup.moving import prepare_move
from tests.cgroup.conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

PIPE = 65536  # bytes until a writer waits


def threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A fifo that stands for the file of the kernel."""
    fifo = tmp_path / "tasks"
    os.mkfifo(fifo)
    fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    monkeypatch.setattr(moving, "_file", lambda: str(fifo))
    yield fd
    os.close(fd)


def test_a_thread_of_its_own_is_moved_and_ends(reader: int) -> None:
    before, fds = threads(), len(os.listdir("/proc/self/fd"))
    prepare_move()
    eventually(lambda: threads() <= before)
    moved = os.read(reader, PIPE).decode()
    assert moved.isdecimal()
    assert moved not in before
    assert len(os.listdir("/proc/self/fd")) == fds


def test_one_thread_does_for_any_number_in_the_making(reader: int) -> None:
    before = threads()
    os.write(reader, bytes(PIPE))
    for _ in range(20):
        prepare_move()
    assert len(threads() - before) == 1
    os.read(reader, PIPE)
    eventually(lambda: threads() <= before)
    prepare_move()
    eventually(lambda: threads() <= before)
    assert len(os.read(reader, PIPE)) > len(str(os.getpid()))


def test_where_there_is_nothing_to_write_to_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threads()
    looked: list[str] = []

    def nowhere() -> str | None:
        looked.append("")
        return None if len(looked) == 1 else str(tmp_path / "gone")

    nowhere.cache_clear = looked.clear  # type: ignore[attr-defined]
    monkeypatch.setattr(moving, "_file", nowhere)
    prepare_move()
    prepare_move()
    assert looked == []  # the cached state is dropped
    assert threads() <= before


@pytest.mark.skipif(not os.access("/sys/fs/cgroup", os.W_OK), reason="needs control groups")
def test_our_own_groups_stay_what_they_are() -> None:
    path = own_threads_file()
    if path is None or not os.access(path, os.W_OK):
        pytest.skip("needs a control group to write to")
    groups, before = Path("/proc/self/cgroup").read_text(), threads()
    assert str(os.getpid()) in Path(path).read_text().split()
    prepare_move()
    eventually(lambda: threads() <= before)
    assert Path("/proc/self/cgroup").read_text() == groups
