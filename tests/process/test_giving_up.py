"""What goes wrong in between: callers that give up, runtimes that vanish, requests that cross."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api import process_pb2
from shim.api.mount_pb2 import Mount
from shim.api.task_grpc import TaskStub
from shim.api.task_pb2 import (
    ConnectRequest,
    DeleteRequest,
    KillRequest,
    PauseRequest,
    PidsRequest,
    ResizePtyRequest,
    StartRequest,
    StateRequest,
    WaitRequest,
)
from shim.container.container import Container
from shim.container.host import Host
from shim.errors import NotFoundError
from shim.events.publisher import NullPublisher
from shim.linux.sockets import connect, socket_address, socket_path
from shim.reaper import open_reaper
from shim.ttrpc.client import open_channel
from tests.e2e.leftovers import processes
from tests.e2e.waiting import PATIENCE
from tests.process.driven import groups
from tests.process.rig import NAMESPACE, Rig, alive, wait_gone

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as AnyMessage

    from shim.api.task_pb2 import CreateTaskRequest
    from shim.cgroup.find import Cgroup
    from shim.child import Child
    from shim.reaper import Reaper


async def start(task: TaskStub, id_: str, exec_id: str = "") -> None:
    await task.Start(StartRequest(id=id_, exec_id=exec_id), timeout=40)


async def test_a_delete_during_a_start_does_not_kill_what_is_being_started(rig: Rig) -> None:
    began, go = rig.root / "began", rig.root / "go"
    wrapper = rig.wrapper(
        "slow",
        f"""case " $* " in *" start "*)
touch {began}; while [ ! -e {go} ]; do sleep 0.02; done;; esac
exec runc "$@\"""",
    )
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    options = rig.options(binary_name=wrapper)
    pid = (await task.Create(rig.create_request(bundle, options=options), timeout=20)).pid
    refused: list[Status] = []

    async def delete() -> None:
        try:
            await task.Delete(DeleteRequest(id="c1"), timeout=20)
        except GRPCError as exc:
            refused.append(exc.status)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start, task, "c1")
        with trio.fail_after(10):
            while not began.exists():
                await trio.sleep(0.01)
        nursery.start_soon(delete)
        # Both are served by one loop, in order: once State answers, Delete has run.
        await task.State(StateRequest(id="c1"), timeout=5)
        go.touch()
    assert refused == [Status.FAILED_PRECONDITION]
    assert alive(pid)


async def test_a_pause_given_up_half_way_leaves_a_container_that_can_be_killed(rig: Rig) -> None:
    wrapper = rig.wrapper(
        "stuck",
        """case " $* " in *" pause "*) runc "$@"; exec sleep 1000;; esac
exec runc "$@\"""",
    )
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle, options=rig.options(binary_name=wrapper))
    with pytest.raises(GRPCError):
        await task.Pause(PauseRequest(id="c1"), timeout=1)
    await task.Kill(KillRequest(id="c1", signal=9), timeout=5)
    assert (await task.Wait(WaitRequest(id="c1"), timeout=5)).exit_status == 137


def share(config: dict[str, Any]) -> None:
    spaces = config["linux"]["namespaces"]
    config["linux"]["namespaces"] = [n for n in spaces if n["type"] != "pid"]


async def test_an_exec_whose_init_ended_long_before_can_be_deleted(rig: Rig) -> None:
    done, go = rig.root / "done", rig.root / "go"
    wrapper = rig.wrapper(
        "slow",
        f"""case " $* " in *" exec "*)
runc "$@"; touch {done}; while [ ! -e {go} ]; do sleep 0.02; done; exit 0;; esac
exec runc "$@\"""",
    )
    bundle = rig.bundle("c1", "sleep", "1000", change=share)
    task = await rig.start(bundle)
    await rig.run(task, bundle, options=rig.options(binary_name=wrapper))
    await task.Exec(rig.exec_request("c1", "e1", "sleep", "1000"), timeout=5)

    async def start_late() -> None:
        with pytest.raises(GRPCError) as caught:
            await start(task, "c1", "e1")
        assert caught.value.status is Status.FAILED_PRECONDITION

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start_late)
        with trio.fail_after(10):
            while not done.exists():
                await trio.sleep(0.01)
        await task.Kill(KillRequest(id="c1", signal=9), timeout=5)
        await task.Wait(WaitRequest(id="c1"), timeout=20)  # it gives the exec ten seconds
        go.touch()
    await task.Delete(DeleteRequest(id="c1", exec_id="e1"), timeout=5)


async def test_a_delete_without_the_runtime_is_an_error_and_can_be_repeated(rig: Rig) -> None:
    wrapper = Path(rig.wrapper("runtime", 'exec runc "$@"'))
    bundle = rig.bundle("c1", "true")
    task = await rig.start(bundle)
    await rig.run(task, bundle, options=rig.options(binary_name=str(wrapper)))
    await task.Wait(WaitRequest(id="c1"), timeout=10)
    wrapper.rename(rig.root / "away")
    with pytest.raises(GRPCError, match="no such file"):
        await task.Delete(DeleteRequest(id="c1"), timeout=10)
    (rig.root / "away").rename(wrapper)
    await task.Delete(DeleteRequest(id="c1"), timeout=10)
    assert not list(rig.runc_root.glob("*/*"))


async def test_start_says_nothing_but_the_address_whatever_is_on_stdin(rig: Rig) -> None:
    bundle = rig.bundle("c1", "true")
    done = rig.run_shim(bundle, "-id", "c1", "start", stdin=b"\xff\xff")
    assert done.returncode == 0
    rig.address = rig.answer(done.stdout)
    await rig.connect()
    assert done.stderr == b""


async def test_a_start_given_up_half_way_is_told_as_what_came_of_it(rig: Rig) -> None:
    wrapper = rig.wrapper(
        "slow",
        """case " $* " in *" start "*) runc "$@"; exec sleep 2;; esac
exec runc "$@\"""",
    )
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    options = rig.options(binary_name=wrapper)
    await task.Create(rig.create_request(bundle, options=options), timeout=20)
    with pytest.raises(GRPCError):
        await task.Start(StartRequest(id="c1"), timeout=1)
    await task.Kill(KillRequest(id="c1", signal=9), timeout=5)
    await task.Wait(WaitRequest(id="c1"), timeout=5)
    await task.Delete(DeleteRequest(id="c1"), timeout=10)
    await rig.sink.wait_for("delete")
    assert rig.sink.names() == ["create", "start", "exit c1", "delete"]


async def test_an_exec_being_deleted_does_not_delay_the_exit_of_init(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    fifo = str(rig.root / "out")
    os.mkfifo(fifo)
    # More than the fifo holds, and nobody reads: Delete waits ten seconds for one.
    much = ["sh", "-c", "dd if=/dev/zero bs=1M count=2 & sleep 1"]
    await task.Exec(rig.exec_request("c1", "e1", *much, stdout=fifo), timeout=5)
    await start(task, "c1", "e1")
    await task.Wait(WaitRequest(id="c1", exec_id="e1"), timeout=10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(delete_quietly, task, "c1", "e1")
        await task.State(StateRequest(id="c1"), timeout=5)
        await task.Kill(KillRequest(id="c1", signal=9), timeout=5)
        await task.Wait(WaitRequest(id="c1"), timeout=5)
        nursery.cancel_scope.cancel()


async def delete_quietly(task: TaskStub, id_: str, exec_id: str) -> None:
    await task.Delete(DeleteRequest(id=id_, exec_id=exec_id), timeout=30)


async def test_a_kill_of_an_exec_never_reaches_the_container(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    pid = (await rig.run(task, bundle)).pid
    await task.Exec(rig.exec_request("c1", "e1", "sleep", "1000"), timeout=5)
    await start(task, "c1", "e1")
    await task.Kill(KillRequest(id="c1", exec_id="e1", signal=9, all=True), timeout=5)
    await task.Wait(WaitRequest(id="c1", exec_id="e1"), timeout=5)
    with pytest.raises(GRPCError, match="no reply"):
        await task.Wait(WaitRequest(id="c1"), timeout=1)
    assert alive(pid)


@pytest.mark.parametrize("everybody", [False, True])
async def test_a_signal_no_machine_has_is_invalid(rig: Rig, everybody: bool) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    with pytest.raises(GRPCError) as caught:
        await task.Kill(KillRequest(id="c1", signal=2**32 - 1, all=everybody), timeout=5)
    assert caught.value.status is Status.INVALID_ARGUMENT


async def test_a_terminal_of_absurd_size_is_invalid(rig: Rig) -> None:
    def terminal(config: dict[str, Any]) -> None:
        config["process"]["terminal"] = True

    bundle = rig.bundle("c1", "sleep", "1000", change=terminal)
    task = await rig.start(bundle)
    await rig.run(task, bundle, terminal=True)
    with pytest.raises(GRPCError) as caught:
        await task.ResizePty(ResizePtyRequest(id="c1", width=70000, height=1), timeout=5)
    assert caught.value.status is Status.INVALID_ARGUMENT


async def test_start_does_not_answer_with_an_address_that_is_no_socket(rig: Rig) -> None:
    bundle = rig.bundle("c1", "true")
    address = socket_address(str(rig.root / "manager"), NAMESPACE, "c1")
    path = Path(address.removeprefix("unix://"))
    path.touch()
    try:
        done = rig.run_shim(bundle, "-id", "c1", "start")
    finally:
        path.unlink()
    assert done.returncode == 1, done.stdout


async def test_an_exit_is_told_though_the_shim_has_no_fd_left(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    limits = resource.prlimit(rig.daemons[0], resource.RLIMIT_NOFILE)
    resource.prlimit(rig.daemons[0], resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        await task.Kill(KillRequest(id="c1", signal=9), timeout=5)
        assert (await task.Wait(WaitRequest(id="c1"), timeout=5)).exit_status == 137
    finally:
        resource.prlimit(rig.daemons[0], resource.RLIMIT_NOFILE, limits)


async def test_an_exec_given_up_half_way_does_not_run_on_unknown(rig: Rig) -> None:
    # As runc itself between the start of the process and its pid file, only longer.
    wrapper = rig.wrapper(
        "slow",
        """for word; do case $previous in --pid-file) file=$word;; esac; previous=$word; done
case " $* " in *" exec "*) runc "$@"; mv $file $file.late; sleep 2; exec mv $file.late $file;; esac
exec runc "$@\"""",
    )
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    pid = (await rig.run(task, bundle, options=rig.options(binary_name=wrapper))).pid
    await task.Exec(rig.exec_request("c1", "e1", "sleep", "1000"), timeout=5)
    with pytest.raises(GRPCError):
        await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=1)
    with trio.fail_after(8):
        while True:
            pids = {p.pid for p in (await task.Pids(PidsRequest(id="c1"))).processes}
            state = await task.State(StateRequest(id="c1", exec_id="e1"))
            known = {state.pid} if state.status == process_pb2.RUNNING else set()
            if pids == {pid} | known:
                break
            await trio.sleep(0.05)


async def test_what_a_killed_create_left_of_its_pid_file_does_not_stop_the_next(rig: Rig) -> None:
    bundle = rig.bundle("c1", "true")
    task = await rig.start(bundle)
    (bundle / ".init.pid").touch()  # runc writes there first, and refuses to twice
    await rig.run(task, bundle)


class _Hasty:
    """A reaper in whose caller the deadline passes at the moment the init is taken over."""

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


@pytest.mark.usefixtures("subreaper")
@pytest.mark.parametrize("has_cgroup", [True, False])
async def test_a_create_given_up_at_its_very_end_leaves_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, has_cgroup: bool
) -> None:
    if not has_cgroup:
        monkeypatch.setattr("shim.container.cgroup.cgroup_of", _no_cgroup)
    bundle = rig.bundle("c1", "sleep", "1000")
    scope = trio.CancelScope()
    async with open_reaper() as reaper, trio.open_nursery() as nursery:
        hasty: Any = _Hasty(reaper, scope)
        host = Host(NAMESPACE, hasty, NullPublisher(), nursery, 30)
        with scope:
            await Container.create(rig.create_request(bundle), host)
        nursery.cancel_scope.cancel()
        assert not list(rig.runc_root.glob("*/*"))


@pytest.mark.usefixtures("subreaper")
async def test_the_init_of_a_create_given_up_ends_though_the_runtime_cannot_delete(
    rig: Rig,
) -> None:
    broken = rig.wrapper("broken", 'case " $* " in *" delete "*) exit 1;; esac\nexec runc "$@"')
    bundle = rig.bundle("c1", "sleep", "1000")
    scope = trio.CancelScope()
    async with open_reaper() as reaper, trio.open_nursery() as nursery:
        hasty: Any = _Hasty(reaper, scope)
        host = Host(NAMESPACE, hasty, NullPublisher(), nursery, 30)
        with scope:
            options = rig.options(binary_name=broken)
            await Container.create(rig.create_request(bundle, options=options), host)
        nursery.cancel_scope.cancel()
        assert hasty.pid
        assert not alive(hasty.pid)


@pytest.fixture(params=["before", "inside", "after"])
def stuck(request: pytest.FixtureRequest, rig: Rig) -> tuple[AnyMessage, Path, Path]:
    """Options whose runtime stops in create: before it works, with an init that waits, after.

    And the file that then names the wrapper, and the file that lets it go.
    """
    mark, go = rig.root / "stuck", rig.root / "go"
    wait = f"echo $$ >{mark}.new; mv {mark}.new {mark}; until [ -e {go} ]; do sleep 0.02; done"
    script = {
        "before": wait,
        # runc is the wrapper's child then: whoever kills the wrapper has not killed runc.
        "inside": f'runc "$@" & {wait}; wait $!; exit',
        "after": f'runc "$@"; {wait}; exit 0',
    }[request.param]
    wrapper = rig.wrapper(
        "wrapper", f'case " $* " in *" create "*) {script};; esac\nexec runc "$@"'
    )
    return rig.options(binary_name=wrapper), mark, go


async def lose_during_create(rig: Rig, request: CreateTaskRequest, mark: Path) -> None:
    """Call Create over a connection of its own, and close that once ``mark`` is there."""
    async with (
        open_channel(await connect(rig.address)) as channel,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(TaskStub(channel).Create, request)
        with trio.fail_after(20 * PATIENCE):
            while not mark.exists():
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


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
    await lose_during_create(rig, request, mark)
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
    fds = os.listdir(f"/proc/{rig.daemons[0]}/fd")
    bundle = rig.bundle("c2", "sleep", "1000")
    fifos = {name: str(rig.root / name) for name in ("stdin", "stdout", "stderr")}
    for path in fifos.values():
        os.mkfifo(path)
    request = rig.create_request(bundle, options=options, **fifos)
    await lose_during_create(rig, request, mark)
    with trio.fail_after(5 * PATIENCE):
        while await connects(task, "c2"):  # containerd 1.6 keeps what it can connect to
            await trio.sleep(0.01)
    go.touch()
    # A manager that comes back tries again, however far the first attempt is undone.
    await rig.run(task, bundle, **fifos)
    assert (await task.Connect(ConnectRequest(id="c2"), timeout=5)).task_pid
    await task.Kill(KillRequest(id="c2", signal=9), timeout=5)
    assert (await task.Wait(WaitRequest(id="c2"), timeout=10)).exit_status == 137
    await task.Delete(DeleteRequest(id="c2"), timeout=10)
    await rig.sink.wait_for("delete", "c2")
    assert rig.sink.names("c2") == ["create", "start", "exit c2", "delete"]
    await nothing_is_left(rig, "c2")
    assert len(os.listdir(f"/proc/{rig.daemons[0]}/fd")) <= len(fds)
    assert (await task.State(StateRequest(id="c1"), timeout=5)).status == process_pb2.RUNNING


async def test_a_start_whose_caller_is_gone_goes_on_and_is_told(rig: Rig) -> None:
    mark, go = rig.root / "stuck", rig.root / "go"
    wait = f"touch {mark}; until [ -e {go} ]; do sleep 0.02; done"
    wrapper = rig.wrapper("wrapper", f'case " $* " in *" start "*) {wait};; esac\nexec runc "$@"')
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    request = rig.create_request(bundle, options=rig.options(binary_name=wrapper))
    await task.Create(request, timeout=20)
    async with (
        open_channel(await connect(rig.address)) as channel,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(TaskStub(channel).Start, StartRequest(id="c1"))
        with trio.fail_after(20 * PATIENCE):
            while not mark.exists():
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    await task.State(StateRequest(id="c1"), timeout=5)  # by now the shim knows of the end
    go.touch()
    await rig.sink.wait_for("start")
    assert (await task.State(StateRequest(id="c1"), timeout=5)).status == process_pb2.RUNNING
