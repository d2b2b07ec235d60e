"""A program that a daemon starts inherits none of the daemon's fds."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shim.api.task_pb2 import DeleteRequest, KillRequest, WaitRequest
from tests.process.driven import Driven
from tests.process.survival import daemon_of
from tests.stdio.whole.client import Streams

if TYPE_CHECKING:
    from shim.api.task_grpc import TaskStub
    from tests.process.rig import Rig
    from tests.process.survival import Start


def inherited_by_programs(pid: int) -> list[str]:
    """Return the files of the fds above 2 of ``pid`` that are not close-on-exec."""
    found = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            info = Path(f"/proc/{pid}/fdinfo/{number}").read_text()
            flags = next(line.split()[1] for line in info.split("\n") if line.startswith("flags:"))
            if int(number) > 2 and not int(flags, 8) & os.O_CLOEXEC:
                found.append(f"{number} {os.readlink(f'/proc/{pid}/fd/{number}')}")  # noqa: PTH115
    return found


def terminal(config: dict[str, Any]) -> None:
    config["process"]["terminal"] = True


async def check(rig: Rig, task: TaskStub, shim: Driven) -> None:
    """Use a terminal, a logging program and fifos, and look at the fds each time."""
    streams = Streams(rig, "c1")
    bundle = rig.root / "c1"
    await rig.run(task, bundle, terminal=True, **streams.fields("stdin", "stdout"))
    daemon = await daemon_of(task)
    assert inherited_by_programs(daemon) == []
    logger = rig.wrapper("logger", "exec 5>&-; cat <&3 >/dev/null")
    for id_, fields in {
        "e1": {"stdout": f"binary://{logger}"},
        "e2": Streams(rig, "e2").fields("stdin", "stdout", "stderr"),
        "e3": {"stdout": f"file://{rig.root}/out"},
    }.items():
        await shim.exec("c1", id_, "sleep", "1000", **fields)
        assert inherited_by_programs(daemon) == [], id_
    await task.Kill(KillRequest(id="c1", signal=signal.SIGKILL), timeout=20)
    await task.Wait(WaitRequest(id="c1"), timeout=20)
    await task.Delete(DeleteRequest(id="c1"), timeout=60)


async def test_no_fd_of_a_daemon_is_inherited(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000", change=terminal)
    task = await rig.start(bundle)
    await check(rig, task, Driven(rig, task))


async def test_no_fd_of_a_replacement_is_inherited(rig: Rig, survivors: Start) -> None:
    shim = await survivors(rig.bundle("c1", "sleep", "1000", change=terminal))
    await shim.replace()
    await check(rig, shim.task, shim)
