"""The order of events, and who gets which exit, with real runc containers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api import process_pb2
from shim.api.options_pb2 import ProcessDetails
from shim.api.task_pb2 import (
    DeleteRequest,
    KillRequest,
    PauseRequest,
    PidsRequest,
    ResumeRequest,
    StartRequest,
    StateRequest,
    StatsRequest,
    UpdateTaskRequest,
    WaitRequest,
)
from shim.cgroup.find import cgroup_of
from shim.cgroup.v1 import CgroupV1
from tests.process.rig import RESOURCES_URL, Rig, alive, wait_gone

if TYPE_CHECKING:
    from shim.api.task_grpc import TaskStub


def check_order(names: list[str], id_: str) -> None:
    """Check what must hold for one container, whatever else happened."""
    assert names[0] == "create", names
    assert names[-1] == "delete", names
    assert names.index("start") < names.index(f"exit {id_}"), names
    # Every exec's exit comes before the init's, which is the last but one.
    assert names[-2] == f"exit {id_}", names
    assert len(set(names) & {n for n in names if n.startswith("exit ")}) == len(
        [n for n in names if n.startswith("exit ")]
    ), names


async def test_a_life_is_told_in_order(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    created = await rig.run(task, bundle)
    await task.Exec(rig.exec_request("c1", "e1", "sh", "-c", "exit 3"), timeout=5)
    started = await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=10)
    waited = await task.Wait(WaitRequest(id="c1", exec_id="e1"), timeout=10)
    assert waited.exit_status == 3
    await task.Pause(PauseRequest(id="c1"), timeout=5)
    await task.Resume(ResumeRequest(id="c1"), timeout=5)
    await task.Kill(KillRequest(id="c1", signal=9), timeout=5)
    waited = await task.Wait(WaitRequest(id="c1"), timeout=10)
    assert waited.exit_status == 137
    deleted = await task.Delete(DeleteRequest(id="c1"), timeout=10)
    assert (deleted.pid, deleted.exit_status) == (created.pid, 137)
    assert deleted.exited_at == waited.exited_at
    await rig.sink.wait_for("delete")
    assert rig.sink.names() == [
        *("create", "start", "exec-added", "exec-started", "exit e1"),
        *("paused", "resumed", "exit c1", "delete"),
    ]
    exits = [e for e in rig.sink.events if hasattr(e, "exit_status") and e.id]
    assert [(e.id, e.pid, e.exit_status) for e in exits] == [
        ("e1", started.pid, 3),
        ("c1", created.pid, 137),
    ]


async def test_twenty_containers_and_their_execs_at_once_keep_their_codes(rig: Rig) -> None:
    """One pod's shim: every exit code is told once, to the right one, in the right order."""
    first = rig.bundle("c0", "true")
    task = await rig.start(first)

    async def life(number: int) -> None:
        id_ = f"c{number}"
        bundle = first if number == 0 else rig.bundle(id_, "true")
        config = json.loads((bundle / "config.json").read_text())
        config["process"]["args"] = ["sh", "-c", f"read x; exit {number + 1}"]
        (bundle / "config.json").write_text(json.dumps(config))
        fifo = rig.root / f"in{number}"
        await trio.run_process(["mkfifo", str(fifo)])
        await rig.run(task, bundle, stdin=str(fifo))
        async with trio.open_nursery() as nursery:
            for code in (1, 2, 3):
                nursery.start_soon(one_exec, id_, f"e{code}", code)
        with fifo.open("w") as end:
            end.write("go\n")
        waited = await task.Wait(WaitRequest(id=id_), timeout=30)
        assert waited.exit_status == number + 1
        await task.Delete(DeleteRequest(id=id_), timeout=30)

    async def one_exec(id_: str, exec_id: str, code: int) -> None:
        await task.Exec(rig.exec_request(id_, exec_id, "sh", "-c", f"exit {code}"), timeout=30)
        await task.Start(StartRequest(id=id_, exec_id=exec_id), timeout=60)
        waited = await task.Wait(WaitRequest(id=id_, exec_id=exec_id), timeout=30)
        assert waited.exit_status == code
        await task.Delete(DeleteRequest(id=id_, exec_id=exec_id), timeout=30)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(life, number)
    for number in range(20):
        await rig.sink.wait_for("delete", f"c{number}")
        names = rig.sink.names(f"c{number}")
        check_order(names, f"c{number}")
        assert sorted(n for n in names if n.startswith("exit e")) == [
            "exit e1",
            "exit e2",
            "exit e3",
        ]


async def test_init_dying_while_execs_start_is_told_last(rig: Rig) -> None:
    for attempt in range(10):
        bundle = rig.bundle(f"c{attempt}", "sleep", "1000")
        task = await rig.start(bundle) if attempt == 0 else await rig.connect()
        await rig.run(task, bundle)
        id_ = bundle.name

        async def start_one(exec_id: str, task: TaskStub = task, id_: str = id_) -> None:
            try:
                await task.Exec(rig.exec_request(id_, exec_id, "sleep", "1000"), timeout=20)
                await task.Start(StartRequest(id=id_, exec_id=exec_id), timeout=20)
            except GRPCError:
                pass  # it came too late, and was told so

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(start_one, f"e{number}")
            await trio.sleep(0.01 * attempt)  # another moment each time
            await task.Kill(KillRequest(id=id_, signal=9), timeout=5)
        await task.Wait(WaitRequest(id=id_), timeout=20)
        await task.Delete(DeleteRequest(id=id_), timeout=20)
        await rig.sink.wait_for("delete", id_)
        names = rig.sink.names(id_)
        check_order(names, id_)
        assert names.count("exec-started") == len([n for n in names if n.startswith("exit e")])


async def test_an_init_killed_before_create_returns_is_not_lost(rig: Rig) -> None:
    wrapper = rig.wrapper(
        "deadly",
        """runc "$@"; status=$?
for last; do :; done
case " $* " in *" create "*) kill -9 $(cat "$(dirname "$0")/$last/init.pid");; esac
exit $status""",
    )
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    options = rig.options(binary_name=wrapper)
    await task.Create(rig.create_request(bundle, options=options), timeout=20)
    assert (await task.Wait(WaitRequest(id="c1"), timeout=20)).exit_status == 137
    state = await task.State(StateRequest(id="c1"), timeout=5)
    assert state.status == process_pb2.STOPPED
    with pytest.raises(GRPCError) as caught:
        await task.Start(StartRequest(id="c1"), timeout=10)
    assert caught.value.status is Status.FAILED_PRECONDITION
    await task.Delete(DeleteRequest(id="c1"), timeout=10)
    await rig.sink.wait_for("delete")
    assert rig.sink.names() == ["create", "exit c1", "delete"]


async def test_readers_do_not_wait_for_a_runtime_that_is_stuck(rig: Rig) -> None:
    go = rig.root / "go"
    wrapper = rig.wrapper(
        "slow",
        f"""case " $* " in *" exec "*) while [ ! -e {go} ]; do sleep 0.05; done;; esac
exec runc "$@\"""",
    )
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle, options=rig.options(binary_name=wrapper))
    await task.Exec(rig.exec_request("c1", "e1", "true"), timeout=5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stub_start, task, "c1", "e1")
        # The runtime is stuck for certain: its process is there.
        with trio.fail_after(10):
            while not await _running(wrapper):
                await trio.sleep(0.01)
        with trio.fail_after(5):
            for _ in range(20):
                before = trio.current_time()
                await task.State(StateRequest(id="c1"))
                await task.Pids(PidsRequest(id="c1"))
                await task.Stats(StatsRequest(id="c1"))
                await task.State(StateRequest(id="c1", exec_id="e1"))
                assert trio.current_time() - before < 0.2
        go.touch()
    await task.Wait(WaitRequest(id="c1", exec_id="e1"), timeout=10)


async def stub_start(task: TaskStub, id_: str, exec_id: str) -> None:
    await task.Start(StartRequest(id=id_, exec_id=exec_id), timeout=30)


async def _running(name: str) -> bool:
    done = await trio.run_process(
        ["pgrep", "-f", f"{name}.* exec "], check=False, capture_stdout=True
    )
    return done.returncode == 0


async def test_a_runtime_that_never_returns_ends_with_the_callers_deadline(rig: Rig) -> None:
    """The container is gone then, its id is free, and nothing of it is left."""
    wrapper = rig.wrapper(
        "stuck",
        """runc "$@"; status=$?
case " $* " in *" create "*) exec sleep 1000;; esac
exit $status""",
    )
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    request = rig.create_request(bundle, options=rig.options(binary_name=wrapper))
    with pytest.raises(GRPCError) as caught:
        await task.Create(request, timeout=1)
    assert caught.value.status is Status.DEADLINE_EXCEEDED
    with trio.fail_after(15):
        # The caller's own clock answered it; the clean-up may still be under way.
        while not await created(rig, task, bundle):
            await trio.sleep(0.05)
    await task.Start(StartRequest(id="c1"), timeout=10)
    pid = (await task.State(StateRequest(id="c1"), timeout=5)).pid
    assert alive(pid)


async def created(rig: Rig, task: TaskStub, bundle: Path) -> bool:
    """Say whether Create succeeded; while the id is taken it cannot."""
    try:
        await task.Create(rig.create_request(bundle), timeout=30)
    except GRPCError as exc:
        if exc.status is not Status.ALREADY_EXISTS:
            raise
        return False
    return True


async def test_pids_names_the_execs_and_is_never_empty(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    created = await rig.run(task, bundle)
    await task.Exec(rig.exec_request("c1", "e1", "sleep", "1000"), timeout=5)
    started = await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=10)
    reply = await task.Pids(PidsRequest(id="c1"), timeout=5)
    infos: dict[int, Any] = {p.pid: p for p in reply.processes}
    assert set(infos) == {created.pid, started.pid}
    details = ProcessDetails()
    assert infos[started.pid].info.type_url == "containerd.runc.v1.ProcessDetails"
    details.ParseFromString(infos[started.pid].info.value)
    assert details.exec_id == "e1"
    assert not infos[created.pid].HasField("info")


async def test_a_paused_container_and_its_execs_report_paused_and_can_be_killed(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    await task.Exec(rig.exec_request("c1", "e1", "sleep", "1000"), timeout=5)
    await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=10)
    await task.Pause(PauseRequest(id="c1"), timeout=5)
    for exec_id in ("", "e1"):
        state = await task.State(StateRequest(id="c1", exec_id=exec_id), timeout=5)
        assert state.status == process_pb2.PAUSED
    with pytest.raises(GRPCError) as caught:
        await task.Exec(rig.exec_request("c1", "e2", "true"), timeout=5)
    assert caught.value.status is Status.FAILED_PRECONDITION
    await task.Kill(KillRequest(id="c1", signal=9), timeout=5)
    assert (await task.Wait(WaitRequest(id="c1"), timeout=10)).exit_status == 137


async def test_kill_all_reaches_every_process(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    await task.Exec(rig.exec_request("c1", "e1", "sleep", "1000"), timeout=5)
    await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=10)
    await task.Kill(KillRequest(id="c1", signal=9, all=True), timeout=5)
    for exec_id in ("e1", ""):
        waited = await task.Wait(WaitRequest(id="c1", exec_id=exec_id), timeout=10)
        assert waited.exit_status == 137


async def test_with_the_hosts_pid_namespace_nothing_outlives_init(rig: Rig) -> None:
    def share(config: dict[str, Any]) -> None:
        spaces = config["linux"]["namespaces"]
        config["linux"]["namespaces"] = [n for n in spaces if n["type"] != "pid"]

    bundle = rig.bundle("c1", "sh", "-c", "sleep 1000 & sleep 1000 & read x", change=share)
    fifo = rig.root / "in"
    await trio.run_process(["mkfifo", str(fifo)])
    task = await rig.start(bundle)
    await rig.run(task, bundle, stdin=str(fifo))
    await task.Exec(rig.exec_request("c1", "e1", "sleep", "1000"), timeout=5)
    await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=10)
    with trio.fail_after(10):
        while len(pids := (await task.Pids(PidsRequest(id="c1"))).processes) < 4:
            await trio.sleep(0.01)
    fifo.write_text("go\n")
    await task.Wait(WaitRequest(id="c1"), timeout=20)
    await rig.sink.wait_for("exit c1")
    names = rig.sink.names()
    assert names.index("exit e1") < names.index("exit c1")
    await wait_gone([p.pid for p in pids], 5)


async def test_an_update_changes_the_limit(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    request = UpdateTaskRequest(id="c1")
    request.resources.type_url = RESOURCES_URL
    request.resources.value = json.dumps({"pids": {"limit": 77}}).encode()
    await task.Update(request, timeout=10)
    cgroup = cgroup_of((await task.State(StateRequest(id="c1"))).pid)
    directory = cgroup.directories["pids"] if isinstance(cgroup, CgroupV1) else cgroup.directory
    assert (Path(directory) / "pids.max").read_text() == "77\n"


async def test_an_oom_kill_is_told_before_the_exit_and_left_in_a_file(rig: Rig) -> None:
    def small(config: dict[str, Any]) -> None:
        config["linux"]["resources"]["memory"] = {"limit": 16 << 20}

    bundle = rig.bundle("c1", "sh", "-c", "x=x; while :; do x=$x$x; done", change=small)
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    assert (await task.Wait(WaitRequest(id="c1"), timeout=30)).exit_status == 137
    await rig.sink.wait_for("exit c1")
    assert rig.sink.names() == ["create", "start", "oom", "exit c1"]
    assert (bundle / "oom").exists()
