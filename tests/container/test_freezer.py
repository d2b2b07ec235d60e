"""A pause that fails: the container may be frozen by then, and is thawed."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest

from shim.api.task_pb2 import CreateTaskRequest
from shim.container.bundle import Config
from shim.container.freezer import Freezer
from shim.container.lifecycle import Op
from shim.container.options import Options
from shim.container.process import Process
from shim.container.saved import SavedState
from shim.container.task_events import TaskEvents
from shim.events.source import NullPublisher
from shim.recovery.deposit import Deposit
from shim.runc.driver import RuntimeFailedError
from shim.stdio.streams import StdioSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

PAUSE = RuntimeFailedError("OCI runtime pause failed: the freezer is busy")
NO_FD = OSError(errno.EMFILE, "Too many open files")
RUNNING = RuntimeFailedError("OCI runtime resume failed: container not paused")


class Runtime:
    """A runtime that raises the error in ``errors`` for a command."""

    def __init__(self, errors: Mapping[str, Exception]) -> None:
        self.calls: list[str] = []
        self._errors = errors

    async def run(self, verb: str, *_: str) -> None:
        self.calls.append(verb)
        if verb in self._errors:
            raise self._errors[verb]


@pytest.mark.parametrize(
    ("thaw", "warnings"), [(None, 0), (RUNNING, 0), (NO_FD, 1)], ids=["ok", "running", "fails"]
)
async def test_a_failed_pause_is_reported_also_if_the_thaw_after_it_fails(
    thaw: Exception | None, warnings: int, capfd: pytest.CaptureFixture[str]
) -> None:
    runtime: Any = Runtime({"pause": PAUSE} | ({"resume": thaw} if thaw else {}))
    init = Process("", StdioSpec())
    init.life.apply(Op.START)
    config = Config.parse(b"{}")
    saved = SavedState(CreateTaskRequest(id="c1"), config, Options(), init, {}, Deposit())
    freezer = Freezer("c1", init, runtime, TaskEvents("c1", NullPublisher()), saved)
    with pytest.raises(RuntimeFailedError, match="freezer is busy"):
        await freezer.pause()
    assert runtime.calls == ["pause", "resume"]
    assert capfd.readouterr().err.count("cannot thaw") == warnings
