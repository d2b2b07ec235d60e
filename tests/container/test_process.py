"""A process of a container, apart from its runtime: exit record, signals, stdin."""

from __future__ import annotations

import _thread
import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from shim.child import Child
from shim.container import process as module
from shim.container.bundle import Bundle
from shim.container.lifecycle import Op
from shim.container.process import Process
from shim.errors import TimedOutError, WrongStateError
from shim.exit import Exit
from shim.records import read_exit, write_exit
from shim.stdio.streams import StdioSpec

if TYPE_CHECKING:
    from pathlib import Path

END = Exit(4711, 7, 1_700_000_000_000_000_000)


class Ended:
    """A child that has ended."""

    pid = END.pid

    async def wait(self) -> Exit:
        return END

    def release(self) -> None:
        pass


class HungDisk:
    """The disk of the exit records: a record is written once it ``responds``."""

    def __init__(self) -> None:
        self.responds = threading.Event()
        self.written = threading.Event()

    def write(self, *args: Any) -> None:
        self.responds.wait(60)
        write_exit(*args)
        self.written.set()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> HungDisk:
    disk = HungDisk()
    monkeypatch.setattr(module, "write_exit", disk.write)
    return disk


@pytest.mark.parametrize("deleted", [True, False])
async def test_a_record_that_is_written_late_is_removed_if_its_process_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: HungDisk, deleted: bool
) -> None:
    monkeypatch.setattr(module, "RECORD", 0.05)
    process = Process("e1", StdioSpec())
    child: Any = Ended()
    process.life.apply(Op.START)
    threads = _thread._count()
    assert await process.record_exit(child, Bundle(tmp_path)) == END
    process.set_exit(END)
    if deleted:
        process.life.apply(Op.DELETE)
    assert read_exit(str(tmp_path), "e1") is None
    disk.responds.set()
    with trio.fail_after(20):
        while not disk.written.is_set() or _thread._count() > threads:
            await trio.sleep(0.01)
    assert read_exit(str(tmp_path), "e1") == (None if deleted else END)


async def test_a_late_record_of_a_deleted_process_costs_no_other_process_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: HungDisk
) -> None:
    """The second process has the id of the first one, whose container was deleted."""
    monkeypatch.setattr(module, "RECORD", 0.05)
    bundle = Bundle(tmp_path)
    first, second = Process("e1", StdioSpec()), Process("e1", StdioSpec())
    first.life.apply(Op.START)
    child: Any = Ended()
    assert await first.record_exit(child, bundle) == END
    first.remove_exec_files(bundle, responds=True)
    with pytest.raises(TimedOutError):
        await second.wait_recorded(bundle)
    disk.responds.set()
    monkeypatch.setattr(module, "RECORD", 20)
    await second.wait_recorded(bundle)
    assert read_exit(str(tmp_path), "e1") is None


async def test_a_late_record_that_another_process_has_replaced_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    responds, other = threading.Event(), replace(END, pid=4712)

    def write(*args: Any) -> None:
        responds.wait(60)
        write_exit(str(tmp_path), other, "e1")  # of another daemon

    monkeypatch.setattr(module, "write_exit", write)
    monkeypatch.setattr(module, "RECORD", 0.05)
    bundle, process = Bundle(tmp_path), Process("e1", StdioSpec())
    process.life.apply(Op.START)
    child: Any = Ended()
    await process.record_exit(child, bundle)
    process.remove_exec_files(bundle, responds=True)
    responds.set()
    monkeypatch.setattr(module, "RECORD", 20)
    await process.wait_recorded(bundle)
    assert read_exit(str(tmp_path), "e1") == other


async def test_an_exit_is_published_though_no_thread_can_write_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def no_room(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", no_room)
    child: Any = Ended()
    assert await Process("e1", StdioSpec()).record_exit(child, Bundle(tmp_path)) == END
    assert "cannot write the exit record" in capfd.readouterr().err


def test_an_exec_that_was_not_started_has_no_pid_and_gets_no_signal() -> None:
    process = Process("e1", StdioSpec())
    assert process.pid == 0
    with pytest.raises(WrongStateError, match="has not been started"):
        process.signal(9)
    with pytest.raises(WrongStateError, match="has not been started"):
        process.resize(80, 24)


@pytest.mark.parametrize("closed", [True, False])
def test_stdin_that_is_closed_before_the_start_is_closed_at_the_start(closed: bool) -> None:
    class Recorder:
        closed = False

        def close_stdin(self) -> None:
            self.closed = True

    process, stdio = Process("e1", StdioSpec()), Recorder()
    if closed:
        process.close_stdin()
    process.set_stdio(stdio)  # type: ignore[arg-type]
    assert stdio.closed == closed
    process.close_stdin()
    assert stdio.closed


async def test_an_exit_is_not_kept_until_its_record_is_written(
    tmp_path: Path, disk: HungDisk
) -> None:
    """A daemon that moves then would take the exit of the reaped process with it."""
    process = Process("e1", StdioSpec())
    process.life.apply(Op.START)
    child = Child(END.pid, os.open(os.devnull, os.O_RDONLY))
    process.set_child(child)
    assert process.is_exit_kept
    async with trio.open_nursery() as nursery:
        child.set_exit(END)
        assert not process.is_exit_kept
        nursery.start_soon(process.record_exit, child, Bundle(tmp_path))
        await trio.testing.wait_all_tasks_blocked()
        assert not process.is_exit_kept
        disk.responds.set()
    assert process.is_exit_kept


async def test_an_exit_without_a_record_is_kept_once_it_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space is left")

    monkeypatch.setattr(module, "write_exit", fail)
    process = Process("e1", StdioSpec())
    process.life.apply(Op.START)
    child = Child(END.pid, os.open(os.devnull, os.O_RDONLY))
    process.set_child(child)
    child.set_exit(END)
    await process.record_exit(child, Bundle(tmp_path))
    assert not process.is_exit_kept
    process.set_exit(END)
    assert process.is_exit_kept
