"""A process of a container: the record of its exit on a disk that responds late."""

from __future__ import annotations

import _thread
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio

from shim.child import Exit
from shim.container import process as module
from shim.container.bundle import Bundle
from shim.container.lifecycle import Op
from shim.container.process import Process
from shim.records import ExitRecord, read_exit, write_exit
from shim.stdio.streams import StdioSpec

if TYPE_CHECKING:
    from pathlib import Path

END = Exit(7, 1_700_000_000_000_000_000)


class Ended:
    """A child that has ended."""

    pid = 4711

    async def wait(self) -> Exit:
        return END


@pytest.mark.parametrize("deleted", [True, False])
async def test_a_record_that_is_written_late_is_removed_if_its_process_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deleted: bool
) -> None:
    responds, written = threading.Event(), threading.Event()

    def write(*args: Any) -> None:
        responds.wait(60)
        write_exit(*args)
        written.set()

    monkeypatch.setattr(module, "write_exit", write)
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
    responds.set()
    with trio.fail_after(20):
        while not written.is_set() or _thread._count() > threads:
            await trio.sleep(0.01)
    record = None if deleted else ExitRecord(child.pid, END.exit_status, END.exited_at)
    assert read_exit(str(tmp_path), "e1") == record
