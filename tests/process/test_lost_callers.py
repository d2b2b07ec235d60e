"""A Create or Start with a caller that cancels it, dies or closes its connection."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api import process_pb2
from shim.api.mount_pb2 import Mount
from shim.api.task_pb2 import (
    ConnectRequest,
    DeleteRequest,
    KillRequest,
    StartRequest,
    StateRequest,
    WaitRequest,
)
from shim.container.container import Container
from shim.container.host import Host
from shim.errors import NotFoundError
from shim.events.source import NullPublisher
from shim.linux.sockets import socket_path
from shim.reaper import open_reaper
from tests.e2e.leftovers import processes
from tests.e2e.waiting import PATIENCE
from tests.openfiles import open_files, wait_no_more_files
from tests.process.driven import groups
from tests.process.rig import NAMESPACE, Rig, alive, wait_gone
from tests.process.steps import lose_call

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as AnyMessage

    from shim.api.task_grpc import TaskStub
    from shim.api.task_pb2 import CreateTaskRequest
    from shim.cgroup.find import Cgroup
    from shim.child import Child
    from shim.reaper import Reaper


async def test_what_a_killed_create_left_of_its_pid_file_does_not_stop_the_next(rig: Rig) -> None:
    bundle = rig.bundle("c1", "true")
    task = await rig.start(bundle)
    (bundle / ".init.pid").touch()  # runc writes there first, and refuses to twice
    await rig.run(task, bundle)


class _Hasty:
    """A reaper that cancels its caller at the moment of the adoption of the init process."""

    def __init__(self, reaper: Reaper, scope: trio.CancelScope) -> None:
        self._reaper = reaper
        self._scope = scope
        self.pid = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reaper, name)

    async def adopt(self, pid: int) -> Child:
        self._scope.cancel()
        self.pid = pid
        return await self._reaper.adopt(pid)


def _no_cgroup(pid: int) -> Cgroup:
    raise NotFoundError(f"process {pid} has no cgroup of its own")


async def create_cancelled_at_adoption(request: CreateTaskRequest) -> int:
    """Cancel a Create at the adoption of the init process; return that process's pid."""
    scope = trio.CancelScope()
    async with open_reaper() as reaper, trio.open_nursery() as nursery:
        hasty: Any = _Hasty(reaper, scope)
        host = Host(NAMESPACE, hasty, NullPublisher(), nursery, 30)
        with scope:
            await Container.create(request, host)
        nursery.cancel_scope.cancel()
    assert hasty.pid
    return int(hasty.pid)


@pytest.mark.usefixtures("subreaper")
@pytest.mark.parametrize("has_cgroup", [True, False])
async def test_a_create_given_up_at_its_very_end_leaves_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, has_cgroup: bool
) -> None:
    if not has_cgroup:
        monkeypatch.setattr("shim.container.cgroup.cgroup_of", _no_cgroup)
    bundle = rig.bundle("c1", "sleep", "1000")
    await create_cancelled_at_adoption(rig.create_request(bundle))
    assert not list(rig.runc_root.glob("*/*"))


@pytest.mark.usefixtures("subreaper")
async def test_a_create_given_up_leaves_no_pid_file_on_a_disk(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.container.bundle.is_in_memory", lambda _: False)
    bundle = rig.bundle("c1", "sleep", "1000")
    await create_cancelled_at_adoption(rig.create_request(bundle))
    assert not list(bundle.glob("*.pid"))
    assert not (bundle / "address").exists()


@pytest.mark.usefixtures("subreaper")
async def test_the_init_of_a_create_given_up_ends_though_the_runtime_cannot_delete(
    rig: Rig,
) -> None:
    broken = rig.wrapper("broken", 'case " $* " in *" delete "*) exit 1;; esac\nexec runc "$@"')
    bundle = rig.bundle("c1", "sleep", "1000")
    request = rig.create_request(bundle, options=rig.options(binary_name=broken))
    assert not alive(await create_cancelled_at_adoption(request))


@pytest.fixture(params=["before", "inside", "after"])
def stuck(request: pytest.FixtureRequest, rig: Rig) -> tuple[AnyMessage, Path, Path]:
    """Options with a runtime that stops in create: before it works, with an init that waits,
    after.

    And the file that then names the wrapper, and the file that lets it go.
    """
    mark, go = rig.root / "stuck", rig.root / "go"
    wait = f"echo $$ >{mark}.new; mv {mark}.new {mark}; until [ -e {go} ]; do sleep 0.02; done"
    script = {
        "before": wait,
        # runc is the wrapper's child then: a kill of the wrapper does not reach runc.
        "inside": f'runc "$@" & {wait}; wait $!; exit',
        "after": f'runc "$@"; {wait}; exit 0',
    }[request.param]
    wrapper = rig.wrapper(
        "wrapper", f'case " $* " in *" create "*) {script};; esac\nexec runc "$@"'
    )
    return rig.options(binary_name=wrapper), mark, go


async def connects(task: TaskStub, id_: str) -> bool:
    """Whether a manager that loads its containers finds ``id_`` in the shim."""
    try:
        await task.Connect(ConnectRequest(id=id_), timeout=5)
    except GRPCError as exc:
        if exc.status is not Status.NOT_FOUND:
            raise
        return False
    return True


def what_is_left(rig: Rig, id_: str) -> list[str]:
    """Name what there is of a container: processes, state, cgroups, mounts, notes."""
    root = str(rig.root)
    left = [f"{pid}: {line}" for pid, line in processes(f"{root}/{id_}", f"{rig.root.name}-{id_}")]
    left += map(str, rig.runc_root.glob(f"*/{id_}"))
    left += [str(group) for group in groups(rig) if group.name.endswith(f"-{id_}")]
    left += [
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if root in line
    ]
    left += map(str, rig.root.glob(f"{id_}/shim-binary-path"))
    return left + [str(path) for path in rig.root.glob(f"*/members/{id_}")]


async def nothing_is_left(rig: Rig, id_: str) -> None:
    with trio.move_on_after(5 * PATIENCE):
        while what_is_left(rig, id_):
            await trio.sleep(0.01)
    assert what_is_left(rig, id_) == []


@pytest.mark.e2e
async def test_a_create_whose_caller_is_gone_is_undone_and_the_shim_ends(
    rig: Rig, stuck: tuple[AnyMessage, Path, Path]
) -> None:
    options, mark, _ = stuck
    bundle = rig.bundle("c1", "sleep", "1000")
    await rig.start(bundle)
    rootfs = Mount(type="bind", source=str(rig.rootfs()), options=["rbind"])
    request = rig.create_request(bundle, options=options, rootfs=[rootfs])
    await lose_call(rig, lambda task: task.Create, request, mark)
    await wait_gone([int(mark.read_text()), *rig.daemons], 15)
    await nothing_is_left(rig, "c1")
    assert not Path(socket_path(rig.address)).exists()
    assert rig.sink.names() == []


@pytest.mark.e2e
async def test_in_a_pod_a_create_whose_caller_is_gone_costs_the_others_nothing(
    rig: Rig, stuck: tuple[AnyMessage, Path, Path]
) -> None:
    options, mark, go = stuck
    first = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(first)
    await rig.run(task, first)
    before = open_files(rig.daemons[0])
    bundle = rig.bundle("c2", "sleep", "1000")
    fifos = {name: str(rig.root / name) for name in ("stdin", "stdout", "stderr")}
    for path in fifos.values():
        os.mkfifo(path)
    request = rig.create_request(bundle, options=options, **fifos)
    await lose_call(rig, lambda task: task.Create, request, mark)
    with trio.fail_after(5 * PATIENCE):
        while await connects(task, "c2"):  # containerd 1.6 keeps a container if Connect succeeds
            await trio.sleep(0.01)
    go.touch()
    # A manager that restarted tries again, also while the first attempt is being undone.
    await rig.run(task, bundle, **fifos)
    assert (await task.Connect(ConnectRequest(id="c2"), timeout=5)).task_pid
    await task.Kill(KillRequest(id="c2", signal=9), timeout=5)
    assert (await task.Wait(WaitRequest(id="c2"), timeout=10)).exit_status == 137
    await task.Delete(DeleteRequest(id="c2"), timeout=10)
    await rig.sink.wait_for("delete", "c2")
    assert rig.sink.names("c2") == ["create", "start", "exit c2", "delete"]
    await nothing_is_left(rig, "c2")
    await wait_no_more_files(rig.daemons[0], before)
    assert (await task.State(StateRequest(id="c1"), timeout=5)).status == process_pb2.RUNNING


async def test_a_start_whose_caller_is_gone_goes_on_and_is_told(rig: Rig) -> None:
    mark, go = rig.root / "stuck", rig.root / "go"
    wait = f"touch {mark}; until [ -e {go} ]; do sleep 0.02; done"
    wrapper = rig.wrapper("wrapper", f'case " $* " in *" start "*) {wait};; esac\nexec runc "$@"')
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    request = rig.create_request(bundle, options=rig.options(binary_name=wrapper))
    await task.Create(request, timeout=20)
    await lose_call(rig, lambda task: task.Start, StartRequest(id="c1"), mark)
    await task.State(StateRequest(id="c1"), timeout=5)  # by now the shim knows of the end
    go.touch()
    await rig.sink.wait_for("start")
    assert (await task.State(StateRequest(id="c1"), timeout=5)).status == process_pb2.RUNNING
