"""What surrounds the runtime while it makes a process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
import trio

from shim.container import create
from shim.container.bundle import Bundle
from shim.container.process import Process
from shim.reaper import open_reaper
from shim.runc.command import Runtime
from shim.runc.driver import Runc
from shim.stdio.opening import open_stdio
from shim.stdio.streams import StdioSpec

if TYPE_CHECKING:
    from pathlib import Path

# Makes a process once the move of it was prepared in the kernel.
RUNTIME = """#!/bin/sh
until test -e {ready}; do sleep 0.01; done
sleep 60 >/dev/null 2>&1 &
echo $! > {pid}
"""


async def test_the_kernel_is_told_of_the_move_while_the_runtime_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subreaper: None
) -> None:
    ready = tmp_path / "ready"
    monkeypatch.setattr(create, "prepare_move", ready.touch)
    bundle, process = Bundle(tmp_path), Process("", StdioSpec())
    runtime = tmp_path / "runtime"
    runtime.write_text(RUNTIME.format(ready=ready, pid=bundle.pid_file()))
    runtime.chmod(0o700)
    async with trio.open_nursery() as nursery, open_reaper() as reaper:
        process.set_stdio(
            await open_stdio(
                process.spec, nursery=nursery, reaper=reaper, container_id="c", namespace="n"
            )
        )
        with trio.fail_after(10):
            child = await create.create_process(
                Runc(Runtime(str(runtime)), reaper), bundle, process, "create", []
            )
        child.signal(9)
        await child.wait()
        assert ready.exists()
        await process.dispose()


@pytest.mark.parametrize(("room", "prepared"), [(True, 1), (False, 0), (None, 0)])
async def test_the_move_of_an_exec_is_prepared_only_where_its_cgroup_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: bool | None, prepared: int
) -> None:
    """At the limit of processes a runtime that is moved early cannot start its threads."""
    told: list[str] = []

    async def create_process(
        runc: Runc,
        bundle: Bundle,
        process: Process,
        verb: str,
        args: list[str],
        started: Any,
        **_: Any,
    ) -> Any:
        started()

    class Group:
        def has_room(self, count: int) -> bool:
            assert count > 10  # a runtime has as many threads
            return bool(room)

    monkeypatch.setattr(create, "prepare_move", lambda: told.append("move"))
    monkeypatch.setattr(create, "create_process", create_process)
    process, anything = Process("e", StdioSpec()), cast("Any", None)
    async with trio.open_nursery() as nursery:

        class Tasks:
            @staticmethod
            def go(work: Any) -> None:
                nursery.start_soon(work)

        await create.create_exec(
            anything,
            Bundle(tmp_path),
            process,
            [],
            init=Process("", StdioSpec()),
            host=cast("Any", Tasks),
            cgroup=None if room is None else cast("Any", Group()),
        )
    assert len(told) == prepared
