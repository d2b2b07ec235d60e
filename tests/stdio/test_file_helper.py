"""The process that writes a log file, with a real reaper."""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from shim.errors import InvalidError
from shim.linux.fifos import Fd
from shim.stdio import filecopy
from shim.stdio.filehelper import FileHelper, open_writer
from tests.latesocket import late_pair

if TYPE_CHECKING:
    from pathlib import Path

    from shim.reaper import Reaper


@pytest.mark.slow
async def test_a_wait_for_what_is_written_ends_with_the_process(
    reaper: Reaper, tmp_path: Path
) -> None:
    """The task that closes the connection may run before the one that waits for an answer."""
    async with trio.open_nursery() as nursery:
        for number in range(200):
            reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
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


async def test_a_wait_for_what_is_written_outlives_a_process_that_was_killed(
    reaper: Reaper, tmp_path: Path
) -> None:
    """The process that replaces it writes the bytes in the pipe."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    path = tmp_path / "log"
    async with trio.open_nursery() as nursery:
        helper = await open_writer(str(path), [Fd(reader)], reaper, create=True, timeout=10)
        helper.start(nursery)
        helper._child.signal(signal.SIGKILL)
        await helper._child.wait()
        os.write(writer, b"said")
        with trio.fail_after(20):
            await helper.wait_drained()
        assert path.read_bytes() == b"said"
        os.close(writer)


@pytest.mark.parametrize("when", ["while it is replaced", "before it is replaced"])
async def test_a_wait_for_what_is_written_ends_when_the_helper_is_stopped(
    reaper: Reaper, tmp_path: Path, when: str
) -> None:
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    async with trio.open_nursery() as nursery:
        path = str(tmp_path / "log")
        helper = await open_writer(path, [Fd(reader)], reaper, create=True, timeout=10)
        helper.start(nursery)
        os.write(writer, b"said")
        with trio.fail_after(10):
            async with trio.open_nursery() as waiting:
                helper._child.signal(signal.SIGKILL)
                if when == "while it is replaced":
                    await helper._child.wait()
                    await trio.testing.wait_all_tasks_blocked()
                waiting.start_soon(helper.wait_drained)
                await helper.stop()
        os.close(writer)


async def test_a_process_that_dies_before_the_file_is_open_is_an_error(
    reaper: Reaper, tmp_path: Path
) -> None:
    helper = FileHelper(str(tmp_path), lambda _: None, reaper, [], writes=True)
    with trio.fail_after(10), pytest.raises(OSError, match="the helper died") as caught:
        await helper.wait_opened(10)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(tmp_path))
    await helper.stop()


async def test_the_pipe_of_a_file_that_cannot_be_opened_is_closed(
    reaper: Reaper, tmp_path: Path
) -> None:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with pytest.raises(InvalidError):
        await open_writer(str(tmp_path), [Fd(reader)], reaper, create=False, timeout=10)
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"said")
    os.close(writer)


async def test_a_file_that_cannot_be_opened_again_is_named_in_the_log(
    reaper: Reaper, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The process that copies was killed, and the file is gone; the writer sees EPIPE."""
    path = tmp_path / "log"
    path.touch()
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    async with trio.open_nursery() as nursery:
        helper = await open_writer(str(path), [Fd(reader)], reaper, create=False, timeout=10)
        helper.start(nursery)
        path.unlink()
        helper._child.signal(signal.SIGKILL)
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"said")
    os.close(writer)
    assert "cannot open a file again" in capfd.readouterr().err


def test_the_last_command_of_a_daemon_counts_after_an_empty_answer(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("input")
    ours, theirs = late_pair()
    reader, writer = os.pipe()
    with ours, theirs:
        theirs.send(filecopy.GO)
        filecopy.read_file(str(tmp_path / "in"), sink=writer, control=ours)
    os.close(writer)
    assert os.read(reader, 100) == b"input"
    os.close(reader)
