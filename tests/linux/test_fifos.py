from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from shim.errors import InvalidError, NotFoundError
from shim.linux import fifos

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    return path


def test_a_missing_fifo_is_named(tmp_path: Path) -> None:
    for attempt in (fifos.is_fifo, fifos.open_keep, fifos.open_reader):
        with pytest.raises(NotFoundError, match=f"{tmp_path}/fifo"):
            attempt(f"{tmp_path}/fifo")


def test_a_file_is_not_a_fifo(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not fifos.is_fifo(f"{tmp_path}/file")
    with pytest.raises(InvalidError):
        fifos.open_keep(f"{tmp_path}/file")


def test_what_is_written_waits_for_a_reader(fifo: str) -> None:
    keep = fifos.open_keep(fifo)
    os.write(keep.number, b"early")
    assert fifos.has_reader(keep)
    fifos.close_reader(keep)
    writer = keep
    assert not os.get_inheritable(writer.number)
    assert not os.get_blocking(writer.number)
    assert not fifos.has_reader(writer)
    reader = fifos.open_reader(fifo)
    assert fifos.has_reader(writer)
    assert fifos.unread(reader) == 5
    assert fifos.has_input(reader)
    writer.close()
    assert os.read(reader.number, 10) == b"early"
    assert os.read(reader.number, 10) == b""
    reader.close()


def test_closing_twice_does_not_close_somebody_elses() -> None:
    reader, writer = fifos.open_pipe()
    number = reader.number
    reader.close()
    other = os.dup(writer.number)
    assert other == number
    reader.close()
    os.fstat(other)
    os.close(other)
    writer.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="chown needs root")
def test_a_pipe_belongs_to_whom_it_is_for() -> None:
    reader, writer = fifos.open_pipe(1234, 5678)
    assert (os.fstat(writer.number).st_uid, os.fstat(writer.number).st_gid) == (1234, 5678)
    reader.close()
    writer.close()
