"""Faults between two calls: callers that give up, runtimes that vanish, requests that cross."""

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
from shim.api.task_pb2 import (
    DeleteRequest,
    KillRequest,
    PauseRequest,
    PidsRequest,
    ResizePtyRequest,
    StartRequest,
    StateRequest,
    WaitRequest,
)
from shim.linux.sockets import socket_address
from tests.e2e.waiting import PATIENCE
from tests.process.configs import host_pids
from tests.process.rig import NAMESPACE, Rig, alive
from tests.process.steps import wait_path

if TYPE_CHECKING:
    from shim.api.task_grpc import TaskStub


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
        await wait_path(began)
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


async def test_an_exec_whose_init_ended_long_before_can_be_deleted(rig: Rig) -> None:
    done, go = rig.root / "done", rig.root / "go"
    wrapper = rig.wrapper(
        "slow",
        f"""case " $* " in *" exec "*)
runc "$@"; touch {done}; while [ ! -e {go} ]; do sleep 0.02; done; exit 0;; esac
exec runc "$@\"""",
    )
    bundle = rig.bundle("c1", "sleep", "1000", change=host_pids)
    task = await rig.start(bundle)
    await rig.run(task, bundle, options=rig.options(binary_name=wrapper))
    await task.Exec(rig.exec_request("c1", "e1", "sleep", "1000"), timeout=5)

    async def start_late() -> None:
        with pytest.raises(GRPCError) as caught:
            await start(task, "c1", "e1")
        assert caught.value.status is Status.FAILED_PRECONDITION

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start_late)
        await wait_path(done)
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
    done, go = rig.root / "done", rig.root / "go"
    wrapper = rig.wrapper(
        "slow",
        f"""case " $* " in *" start "*)
runc "$@"; touch {done}; while [ ! -e {go} ]; do sleep 0.02; done; exit;; esac
exec runc "$@\"""",
    )
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    options = rig.options(binary_name=wrapper)
    await task.Create(rig.create_request(bundle, options=options), timeout=20)
    with pytest.raises(GRPCError):
        await task.Start(StartRequest(id="c1"), timeout=0.3)
    await wait_path(done)  # a Kill would not wait for it
    go.touch()
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
    # More bytes than the fifo holds, without a reader: Delete waits ten seconds for one.
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
    go = rig.root / "go"
    wrapper = rig.wrapper(
        "slow",
        f"""for word; do case $previous in --pid-file) file=$word;; esac; previous=$word; done
case " $* " in *" exec "*)
runc "$@"; mv $file $file.late
while [ ! -e {go} ]; do sleep 0.02; done; exec mv $file.late $file;; esac
exec runc "$@\"""",
    )
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    pid = (await rig.run(task, bundle, options=rig.options(binary_name=wrapper))).pid
    await task.Exec(rig.exec_request("c1", "e1", "sleep", "1000"), timeout=5)
    with pytest.raises(GRPCError):
        await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=0.3)
    go.touch()
    with trio.fail_after(8 * PATIENCE):
        while True:
            pids = {p.pid for p in (await task.Pids(PidsRequest(id="c1"))).processes}
            state = await task.State(StateRequest(id="c1", exec_id="e1"))
            known = {state.pid} if state.status == process_pb2.RUNNING else set()
            if pids == {pid} | known:
                break
            await trio.sleep(0.05)
