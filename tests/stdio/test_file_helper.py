"""The process that writes a log file, with a real reaper."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
import trio

from shim.linux.fifos import Fd
from shim.stdio.filehelper import open_writer

if TYPE_CHECKING:
    from pathlib import Path

    from shim.reaper import Reaper


async def test_a_wait_for_what_is_written_ends_with_the_process(
    reaper: Reaper, tmp_path: Path
) -> None:
    """The task that closes the connection may run before the one that waits for an answer."""
    async with trio.open_nursery() as nursery:
        for number in range(200):
            reader, writer = os.pipe2(os.O_CLOEXEC)
            path = tmp_path / str(number)
            helper = await open_writer(str(path), [Fd(reader)], reaper, create=True, timeout=10)
            helper.start(nursery)
            os.write(writer, b"said")
            os.close(writer)
            # The process sees the end of the pipe before the question, or after it.
            asked = time.perf_counter() + number * 2e-6
            while time.perf_counter() < asked:
                pass
            with trio.fail_after(10):
                await helper.wait_drained()
            assert path.read_bytes() == b"said"


async def test_a_file_that_cannot_be_opened_again_is_named_in_the_log(
    reaper: Reaper, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The process that copies was killed, and the file is gone; the writer sees EPIPE."""
    path = tmp_path / "log"
    path.touch()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    async with trio.open_nursery() as nursery:
        helper = await open_writer(str(path), [Fd(reader)], reaper, create=False, timeout=10)
        helper.start(nursery)
        path.unlink()
        helper._child.signal(signal.SIGKILL)
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"said")
    os.close(writer)
    assert "cannot open a file again" in capfd.readouterr().err
