"""A runtime that is killed while its own binary is mounted in its state directory.

runc before 1.1.15 does that in each create and exec, and its delete leaves such a directory.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api.task_pb2 import DeleteRequest, KillRequest, StartRequest, WaitRequest
from shim.errors import WrongStateError
from shim.linux.libc import mount
from shim.linux.mountinfo import mount_points
from shim.runc.unfinished import remove_unfinished
from shim.ttrpc.calls import ConnectionLostError
from tests.e2e.waiting import wait_until
from tests.process.rig import NAMESPACE, Rig, alive
from tests.process.steps import kill_daemon, wait_path
from tests.process.test_delete import MS_BIND, delete
from tests.process.test_lost_callers import nothing_is_left

if TYPE_CHECKING:
    from shim.api.task_grpc import TaskStub
    from shim.api.task_pb2 import CreateTaskRequest


async def start_stopping_in(rig: Rig, verb: str) -> tuple[TaskStub, CreateTaskRequest, Path]:
    """Start a daemon for c1, whose runtime stops in ``verb``.

    Return its client, the request of the Create, and the file with the runtime's pid then.
    """
    bundle = rig.bundle("c1", "sleep", "1000")
    mark = rig.root / "mark"
    state = rig.runc_root / NAMESPACE / "c1"
    wrapper = rig.wrapper(
        "mounting",
        f"""case " $* " in *" {verb} "*)
    if [ ! -e {mark} ]; then
        mkdir -p {state}
        touch {state}/runc.AbCdEf
        mount --bind $(command -v runc) {state}/runc.AbCdEf
        mount -o remount,bind,ro {state}/runc.AbCdEf
        echo $$ >{mark}.new
        mv {mark}.new {mark}
        while :; do sleep 1; done
    fi;; esac
exec runc "$@\"""",
    )
    request = rig.create_request(bundle, options=rig.options(binary_name=wrapper))
    return await rig.start(bundle), request, mark


def mounts_of(rig: Rig) -> list[str]:
    return [point for point in mount_points() if point.startswith(str(rig.runc_root))]


async def test_after_a_create_that_is_killed_its_id_can_be_created_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIO_SHIM_RUNTIME_TIMEOUT", "1")
    task, request, _ = await start_stopping_in(rig, "create")
    with pytest.raises(GRPCError) as caught:
        await task.Create(request, timeout=20)
    assert caught.value.status is Status.DEADLINE_EXCEEDED
    await nothing_is_left(rig, "c1")
    assert alive((await task.Create(request, timeout=20)).pid)


async def test_a_delete_removes_what_a_killed_exec_has_mounted(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIO_SHIM_RUNTIME_TIMEOUT", "1")
    task, request, _ = await start_stopping_in(rig, "exec")
    await task.Create(request, timeout=20)
    await task.Start(StartRequest(id="c1"), timeout=20)
    await task.Exec(rig.exec_request("c1", "e1", "true"), timeout=5)
    with pytest.raises(GRPCError):
        await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=20)
    assert mounts_of(rig)
    await task.Kill(KillRequest(id="c1", signal=9), timeout=5)
    await task.Wait(WaitRequest(id="c1"), timeout=20)
    await task.Delete(DeleteRequest(id="c1"), timeout=20)
    await nothing_is_left(rig, "c1")


async def test_delete_without_a_daemon_removes_it(rig: Rig) -> None:
    task, request, mark = await start_stopping_in(rig, "create")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lost, task, request)
        await wait_path(mark)
        await kill_daemon(rig)
    os.kill(int(mark.read_text()), signal.SIGKILL)
    assert mounts_of(rig)
    await delete(rig, rig.root / "c1")
    await nothing_is_left(rig, "c1")


async def lost(task: TaskStub, request: CreateTaskRequest) -> None:
    with pytest.raises(ConnectionLostError):
        await task.Create(request, timeout=20)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The directory of the container c1 in a runtime's state directory."""
    path = tmp_path / "c1"
    path.mkdir()
    return path


@pytest.mark.parametrize("name", ["state.json", "status"])
async def test_a_container_that_the_runtime_knows_is_left_alone(state: Path, name: str) -> None:
    (state / name).touch()
    await remove_unfinished(str(state.parent), "c1")
    assert (state / name).exists()


def test_what_a_runtime_makes_now_is_left_alone(state: Path) -> None:
    # Without a child, which would have the same arguments until its execve(2).
    command = ["sh", "-c", "read line", "--root", str(state.parent), "create", "c1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as runtime:
        line = Path(f"/proc/{runtime.pid}/cmdline")
        wait_until("the program is loaded", line.read_bytes)
        try:
            with pytest.raises(WrongStateError, match="a runtime command"):
                trio.run(remove_unfinished, str(state.parent), "c1")
        finally:
            runtime.kill()
    assert state.exists()
    trio.run(remove_unfinished, str(state.parent), "c1")
    assert not state.exists()


async def test_files_that_are_mounted_in_it_stay(state: Path) -> None:
    kept = state.parent / "kept"
    kept.mkdir()
    (kept / "file").write_text("kept")
    for name in ("one", "two"):
        (state / name).mkdir()
        for _ in range(2):
            mount(str(kept), str(state / name), "", MS_BIND)
    (state / "runc.AbCdEf").touch()
    (state / "exec.fifo").touch()
    mount(str(kept / "file"), str(state / "runc.AbCdEf"), "", MS_BIND)
    await remove_unfinished(str(state.parent), "c1")
    assert not state.exists()
    assert (kept / "file").read_text() == "kept"
    assert not [point for point in mount_points() if point.startswith(str(state))]
