"""Small things a manager relies on without saying so, each asked of a real shim with real runc.

Source: containerd core/runtime/v2 (shim_load.go, binary.go, shim.go), cmd/containerd-shim-runc-v2
(task/service.go, process/*.go), moby daemon/internal/libcontainerd/remote/client.go.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api import process_pb2
from shim.api.task_grpc import TaskStub
from shim.api.task_pb2 import (
    ConnectRequest,
    DeleteRequest,
    DeleteResponse,
    ExecProcessRequest,
    KillRequest,
    PidsRequest,
    ShutdownRequest,
    StartRequest,
    StateRequest,
    WaitRequest,
)
from shim.container.task_events import ZERO_TIME
from shim.linux.sockets import connect, socket_path
from shim.ttrpc.client import UnaryUnaryMethod, open_channel
from tests.e2e.waiting import PATIENCE
from tests.process.rig import NAMESPACE, SHIM, Rig, alive, wait_gone
from tests.process.steps import wait_path
from tests.ttrpc.test_conversation import Peer, call, frame

if TYPE_CHECKING:
    from collections.abc import Awaitable

METHODS = "State Create Start Delete Pids Pause Resume Checkpoint Kill Exec ResizePty CloseIO"
METHODS += " Update Wait Stats Connect Shutdown"


async def refused(asked: Awaitable[object], status: Status) -> str:
    with trio.fail_after(20), pytest.raises(GRPCError) as caught:
        await asked
    assert caught.value.status is status, caught.value
    return str(caught.value.message)


async def running(rig: Rig, *args: str, **fields: Any) -> tuple[TaskStub, int]:
    """Start a container ``c1``; return a client of its shim, and its init's pid."""
    bundle = rig.bundle("c1", *(args or ("sleep", "1000")))
    task = await rig.start(bundle)
    return task, (await rig.run(task, bundle, **fields)).pid


async def run_exec(rig: Rig, task: TaskStub, exec_id: str, *args: str) -> int:
    await task.Exec(rig.exec_request("c1", exec_id, *args), timeout=5)
    return (await task.Start(StartRequest(id="c1", exec_id=exec_id), timeout=20)).pid


async def end(task: TaskStub) -> None:
    await task.Kill(KillRequest(id="c1", signal=9), timeout=5)
    await task.Wait(WaitRequest(id="c1"), timeout=20)


# -- start, and its remains ------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        ("--id=c1", "--debug", "-publish-binary=/usr/bin/containerd"),
        ("-id", "c1", "-debug=true", "--publish-binary", "/usr/bin/containerd", "-bundle="),
    ],
)
async def test_flags_are_read_as_go_reads_them(rig: Rig, flags: tuple[str, ...]) -> None:
    done = rig.run_shim(rig.bundle("c1", "true"), *flags, "start")
    assert (done.returncode, done.stderr) == (0, b"")
    rig.address = done.stdout.decode()
    await rig.connect()


async def test_the_files_managers_look_for_are_in_the_bundle_and_theirs_stay(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    theirs = {"shim-binary-path": "/usr/bin/x", "bootstrap.json": "{}", "sandbox": "s1"}
    for name, text in theirs.items():
        (bundle / name).write_text(text)
    task = await rig.start(bundle)
    created = await rig.run(task, bundle)
    pid = await run_exec(rig, task, "e1", "sleep", "1000")
    assert (bundle / "address").read_text() == rig.address
    assert (bundle / "init.pid").read_text() == str(created.pid)
    assert (bundle / "e1.pid").read_text() == str(pid)
    assert (bundle / "runtime").read_text() == "runc"
    assert str(rig.runc_root) in (bundle / "options.json").read_text()
    assert (bundle / "log.json").exists()
    assert {name: (bundle / name).read_text() for name in theirs} == theirs


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_shim_in_good_order(rig: Rig, number: int) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    os.mkfifo(bundle / "log")
    log = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)
    try:
        task = await rig.start(bundle)
        pid = (await rig.run(task, bundle)).pid
        os.kill(rig.daemons[0], number)
        await wait_gone(rig.daemons, 5)
        text = os.read(log, 1 << 16)
    finally:
        os.close(log)
    assert f"signal={signal.Signals(number).name}".encode() in text
    assert b"level=error" not in text
    assert alive(pid)
    assert not Path(socket_path(rig.address)).exists()
    # Earlier events were published before.
    assert rig.sink.names() == ["create", "start"]


async def test_a_broken_pipe_does_not_end_it(rig: Rig) -> None:
    task, _ = await running(rig)
    os.kill(rig.daemons[0], signal.SIGPIPE)
    assert (await task.Connect(ConnectRequest(), timeout=5)).shim_pid == rig.daemons[0]


async def test_delete_reads_nothing_from_its_standard_input(rig: Rig) -> None:
    """A manager gives it none, but may leave it open."""
    bundle = rig.root / "never"
    bundle.mkdir()
    reader, writer = os.pipe()
    try:
        flags = ["-namespace", NAMESPACE, "-id", "never", "-bundle", str(bundle)]
        done = subprocess.run(
            [*SHIM, *flags, "delete"], stdin=reader, capture_output=True, check=True, timeout=5
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert DeleteResponse.FromString(done.stdout).exit_status == 137


# -- one socket --------------------------------------------------------------------


async def test_every_method_is_served_in_both_versions_and_nothing_else_is(rig: Rig) -> None:
    await running(rig)

    async def answer(channel: Any, name: str) -> Status:
        method = UnaryUnaryMethod(channel, name, StateRequest, Empty)
        try:
            await method(StateRequest(id="nobody"), timeout=10)
        except GRPCError as exc:
            return exc.status
        return Status.OK

    async with await connect(rig.address) as stream, open_channel(stream) as channel:
        for version in ("v2", "v3"):
            for name in METHODS.split():
                status = await answer(channel, f"/containerd.task.{version}.Task/{name}")
                assert status is not Status.UNIMPLEMENTED, name
        for name in (
            "/containerd.task.v3.Task/Fly",
            "/containerd.task.v1.Task/State",
            "/containerd.runtime.sandbox.v1.Sandbox/CreateSandbox",
            "/grpc.health.v1.Health/Check",
        ):
            assert await answer(channel, name) is Status.UNIMPLEMENTED, name


async def test_a_message_too_big_is_refused_and_its_connection_goes_on(rig: Rig) -> None:
    await running(rig)
    async with await connect(rig.address) as stream:
        peer = Peer(stream)
        await peer.send(frame(1, bytes((4 << 20) + 1)))
        assert await peer.refusal() == (1, Status.RESOURCE_EXHAUSTED.value)
        await peer.send(call(3, b"CloseIO", b"\x1a\x04\x0a\x02c1"))
        assert await peer.receive() == frame(3, kind=2)


async def test_the_shims_own_namespace_counts_whatever_a_call_says(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    await rig.start(bundle)
    metadata = {"containerd-namespace-ttrpc": "elsewhere"}
    async with await connect(rig.address) as stream, open_channel(stream, metadata) as channel:
        await TaskStub(channel).Create(rig.create_request(bundle), timeout=20)
    assert (rig.runc_root / NAMESPACE / "c1").exists()
    await rig.sink.wait_for("create")
    assert [envelope.namespace for envelope in rig.sink.envelopes] == [NAMESPACE]


async def test_connect_is_answered_for_any_id(rig: Rig) -> None:
    task, pid = await running(rig)
    for id_, wanted in (("c1", pid), ("nobody", 0), ("", 0)):
        reply = await task.Connect(ConnectRequest(id=id_), timeout=5)
        assert (reply.shim_pid, reply.task_pid) == (rig.daemons[0], wanted)
        assert reply.version


async def test_a_manager_that_comes_back_is_answered_while_a_runtime_hangs(rig: Rig) -> None:
    """The manager drops the container unless Connect and Pids reply within five seconds."""
    began = rig.root / "began"
    hang = f'case " $* " in *" create "*) touch {began}; exec sleep 1000;; esac\nexec runc "$@"'
    task, pid = await running(rig)
    second = rig.bundle("c2", "true")
    options = rig.options(binary_name=rig.wrapper("hang", hang))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(task.Create, rig.create_request(second, options=options))
        await wait_path(began)
        with trio.fail_after(5 * PATIENCE):
            back = await rig.connect()
            assert (await back.Connect(ConnectRequest(id="c1"))).task_pid == pid
            assert (await back.Pids(PidsRequest(id="c1"))).processes[0].pid == pid
            await back.Shutdown(ShutdownRequest(id="c1"))
        nursery.cancel_scope.cancel()
    assert alive(pid)


# -- a container and its execs -----------------------------------------------------


async def test_create_answers_with_the_init_that_waits_for_its_start(rig: Rig) -> None:
    bundle = rig.bundle("c1", "touch", "/ran")
    task = await rig.start(bundle)
    created = await task.Create(rig.create_request(bundle), timeout=20)
    state = await task.State(StateRequest(id="c1"), timeout=5)
    assert created.pid == state.pid == int((bundle / "init.pid").read_text())
    assert alive(created.pid)
    assert state.status == process_pb2.CREATED
    assert (await task.Start(StartRequest(id="c1"), timeout=20)).pid == created.pid
    await task.Wait(WaitRequest(id="c1"), timeout=20)
    assert (rig.rootfs() / "ran").exists()
    assert rig.sink.names()[:2] == ["create", "start"]


async def test_the_state_of_an_exec_bears_its_own_id(rig: Rig) -> None:
    out, exec_out = str(rig.root / "out"), str(rig.root / "exec-out")
    for path in (out, exec_out):
        os.mkfifo(path)
    task, pid = await running(rig, stdout=out)
    await task.Exec(rig.exec_request("c1", "e1", "sleep", "1000", stdout=exec_out), timeout=5)
    before = await task.State(StateRequest(id="c1", exec_id="e1"), timeout=5)
    assert (before.status, before.pid) == (process_pb2.CREATED, 0)
    started = await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=20)
    of_exec = await task.State(StateRequest(id="c1", exec_id="e1"), timeout=5)
    of_init = await task.State(StateRequest(id="c1"), timeout=5)
    assert (of_exec.id, of_exec.exec_id, of_exec.pid) == ("e1", "e1", started.pid)
    assert (of_init.id, of_init.exec_id, of_init.pid) == ("c1", "", pid)
    assert (of_init.stdout, of_exec.stdout) == (out, exec_out)
    assert of_init.bundle == of_exec.bundle == str(rig.root / "c1")
    assert of_init.exited_at.seconds == ZERO_TIME


async def test_waiting_for_what_has_ended_is_answered_at_once_and_the_same(rig: Rig) -> None:
    task, _ = await running(rig)
    await run_exec(rig, task, "e1", "sh", "-c", "exit 3")
    first = await task.Wait(WaitRequest(id="c1", exec_id="e1"), timeout=20)
    await end(task)
    init = await task.Wait(WaitRequest(id="c1"), timeout=5)
    for connection in (task, await rig.connect()):
        again = await connection.Wait(WaitRequest(id="c1", exec_id="e1"), timeout=5)
        assert again == first
        assert await connection.Wait(WaitRequest(id="c1"), timeout=5) == init
    assert (first.exit_status, init.exit_status) == (3, 137)
    state = await task.State(StateRequest(id="c1"), timeout=5)
    assert (state.exit_status, state.exited_at) == (137, init.exited_at)


async def test_an_init_can_be_killed_before_its_start(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await task.Create(rig.create_request(bundle), timeout=20)
    await end(task)
    await refused(task.Start(StartRequest(id="c1")), Status.FAILED_PRECONDITION)
    assert (await task.Delete(DeleteRequest(id="c1"), timeout=20)).exit_status == 137
    await rig.sink.wait_for("delete")
    assert rig.sink.names() == ["create", "exit c1", "delete"]


async def test_a_start_that_fails_leaves_a_container_that_can_be_deleted(rig: Rig) -> None:
    fail = 'case " $* " in *" start "*) echo no luck >&2; exit 1;; esac\nexec runc "$@"'
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    options = rig.options(binary_name=rig.wrapper("fail", fail))
    created = await task.Create(rig.create_request(bundle, options=options), timeout=20)
    assert "no luck" in await refused(task.Start(StartRequest(id="c1")), Status.UNKNOWN)
    await task.Delete(DeleteRequest(id="c1"), timeout=20)
    assert not alive(created.pid)
    assert not list(rig.runc_root.glob("*/*"))
    await rig.sink.wait_for("delete")
    assert rig.sink.names() == ["create", "exit c1", "delete"]
    await task.Shutdown(ShutdownRequest(id="c1"), timeout=5)
    await wait_gone(rig.daemons)


async def test_an_exec_that_was_added_in_time_cannot_start_after_its_init(rig: Rig) -> None:
    task, _ = await running(rig)
    await task.Exec(rig.exec_request("c1", "e1", "true"), timeout=5)
    await end(task)
    await refused(task.Start(StartRequest(id="c1", exec_id="e1")), Status.FAILED_PRECONDITION)
    await refused(task.Exec(rig.exec_request("c1", "e2", "true")), Status.FAILED_PRECONDITION)
    await task.Delete(DeleteRequest(id="c1", exec_id="e1"), timeout=5)
    await task.Delete(DeleteRequest(id="c1"), timeout=20)


async def test_the_delete_of_an_exec_is_no_event(rig: Rig) -> None:
    task, _ = await running(rig)
    pid = await run_exec(rig, task, "e1", "sh", "-c", "exit 3")
    await task.Wait(WaitRequest(id="c1", exec_id="e1"), timeout=20)
    deleted = await task.Delete(DeleteRequest(id="c1", exec_id="e1"), timeout=20)
    assert (deleted.pid, deleted.exit_status) == (pid, 3)
    assert not (rig.root / "c1" / "e1.pid").exists()
    await end(task)
    await rig.sink.wait_for("exit c1")
    told = ["create", "start", "exec-added", "exec-started", "exit e1", "exit c1"]
    assert rig.sink.names() == told


async def test_a_terminal_has_no_stderr_of_its_own(rig: Rig) -> None:
    out = str(rig.root / "out")
    os.mkfifo(out)
    task, _ = await running(rig)
    nowhere = str(rig.root / "nowhere")
    command = ("sh", "-c", "test -t 2 && echo err >&2; exit 3")
    request = rig.exec_request("c1", "e1", *command, terminal=True, stdout=out, stderr=nowhere)
    reader = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
    try:
        await task.Exec(request, timeout=5)
        await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=20)
        waited = await task.Wait(WaitRequest(id="c1", exec_id="e1"), timeout=20)
        assert waited.exit_status == 3
        await task.Delete(DeleteRequest(id="c1", exec_id="e1"), timeout=20)
        assert os.read(reader, 100) == b"err\r\n"
    finally:
        os.close(reader)
    assert not Path(nowhere).exists()


@pytest.mark.parametrize("exec_id", ["a", "A-b.c_d", "0", "x" * 76, "e1.e2-e3"])
async def test_an_exec_id_containerd_lets_pass_is_taken(rig: Rig, exec_id: str) -> None:
    task, _ = await running(rig)
    await task.Exec(rig.exec_request("c1", exec_id, "true"), timeout=5)
    await task.Delete(DeleteRequest(id="c1", exec_id=exec_id), timeout=5)


async def test_an_exec_id_containerd_would_stop_is_refused(rig: Rig) -> None:
    task, _ = await running(rig)
    for exec_id in ("x" * 77, "a..b", "-a", "a-", "a b", "é", "a\n", "a/b"):
        await refused(task.Exec(rig.exec_request("c1", exec_id, "true")), Status.INVALID_ARGUMENT)
    assert "exec-added" not in rig.sink.names()


@pytest.mark.parametrize("prefix", ["", "types.containerd.io/", "a/b/c/"])
async def test_the_spec_of_an_exec_is_json_under_any_prefix(rig: Rig, prefix: str) -> None:
    task, _ = await running(rig)
    request: ExecProcessRequest = rig.exec_request("c1", "e1", "sh", "-c", "exit 3")
    name = "opencontainers/runtime-spec/1/Process"
    request.spec.CopyFrom(AnyMessage(type_url=prefix + name, value=request.spec.value))
    await task.Exec(request, timeout=5)
    await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=20)
    waited = await task.Wait(WaitRequest(id="c1", exec_id="e1"), timeout=20)
    assert waited.exit_status == 3
