"""What surrounds the runtime while it makes a process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from shim.container import birth
from shim.container.bundle import Bundle
from shim.container.process import Process
from shim.reaper import open_reaper
from shim.runc.command import Runtime
from shim.runc.driver import Runc
from shim.stdio.stdio import StdioSpec, open_stdio

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

# Makes a process once the kernel was told that one comes.
RUNTIME = """#!/bin/sh
until test -e {ready}; do sleep 0.01; done
sleep 60 >/dev/null 2>&1 &
echo $! > {pid}
"""


async def test_the_kernel_is_told_of_the_move_while_the_runtime_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subreaper: None
) -> None:
    ready = tmp_path / "ready"
    monkeypatch.setattr(birth, "prepare_move", ready.touch)
    bundle, process = Bundle(tmp_path), Process("", StdioSpec())
    runtime = tmp_path / "runtime"
    runtime.write_text(RUNTIME.format(ready=ready, pid=bundle.pid_file()))
    runtime.chmod(0o700)
    async with trio.open_nursery() as nursery, open_reaper() as reaper:
        process.take(
            await open_stdio(
                process.spec, nursery=nursery, reaper=reaper, container_id="c", namespace="n"
            )
        )
        with trio.fail_after(10):
            child = await birth.bear(
                Runc(Runtime(str(runtime)), reaper), bundle, process, "create", []
            )
        child.signal(9)
        await child.wait()
        assert ready.exists()
        await process.dispose()
