"""Bad input returns a clear error to its sender and affects no other client."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api import process_pb2
from shim.api.bootstrap_pb2 import BootstrapParams
from shim.api.task_pb2 import (
    ConnectRequest,
    DeleteRequest,
    ExecProcessRequest,
    KillRequest,
    PidsRequest,
    ShutdownRequest,
    StartRequest,
    StateRequest,
    UpdateTaskRequest,
    WaitRequest,
)
from shim.linux.sockets import socket_path
from tests.process.rig import NAMESPACE, PROCESS_URL, Rig, alive, wait_gone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shim.api.task_grpc import TaskStub


@pytest.fixture
async def task(rig: Rig) -> AsyncIterator[TaskStub]:
    """A shim with one good container, which must be as good after the test."""
    good = rig.bundle("good", "sleep", "1000")
    task = await rig.start(good)
    reply = await rig.run(task, good)
    before = _fds(rig)
    yield task
    assert (await task.State(StateRequest(id="good"), timeout=5)).status == process_pb2.RUNNING
    assert alive(reply.pid)
    other = await rig.connect()
    assert (await other.Pids(PidsRequest(id="good"), timeout=5)).processes[0].pid == reply.pid
    # The second connection is one fd more; the end of another is soon seen.
    with trio.fail_after(10):
        while len(_fds(rig)) > len(before) + 1:
            await trio.sleep(0.01)
    assert not list(rig.runc_root.glob("*/bad*"))


def _fds(rig: Rig) -> list[str]:
    root = f"/proc/{rig.daemons[0]}/fd"
    return [os.readlink(f"{root}/{fd}") for fd in os.listdir(root)]  # noqa: PTH115


async def refused(call: Any) -> GRPCError:
    with trio.fail_after(20), pytest.raises(GRPCError) as caught:
        await call
    assert caught.value.message
    assert "\n" not in caught.value.message
    return caught.value


async def test_a_bundle_without_config_json(rig: Rig, task: TaskStub) -> None:
    bad = rig.root / "bad"
    bad.mkdir()
    error = await refused(task.Create(rig.create_request(bad)))
    assert error.status is Status.NOT_FOUND
    assert "config.json" in str(error.message)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"process": 3}', '{"linux": {"namespaces": 1}}'])
async def test_a_broken_config_json(rig: Rig, task: TaskStub, text: str) -> None:
    bad = rig.root / "bad"
    bad.mkdir()
    (bad / "config.json").write_text(text)
    error = await refused(task.Create(rig.create_request(bad)))
    assert error.status is Status.INVALID_ARGUMENT
    assert "config.json" in str(error.message)


async def test_a_config_runc_refuses_in_runcs_own_words(rig: Rig, task: TaskStub) -> None:
    bad = rig.bundle("bad", "/no/such/program")
    error = await refused(task.Create(rig.create_request(bad)))
    assert error.status is Status.UNKNOWN
    assert "OCI runtime create failed" in str(error.message)
    assert "no such file or directory" in str(error.message)


@pytest.mark.parametrize("path", ["/a" * 3000, "/a\0b"])
async def test_a_cgroup_path_that_is_none_in_runcs_own_words(
    rig: Rig, task: TaskStub, path: str
) -> None:
    """The shim looks at the path, too, when it undoes what runc could not do."""

    def change(config: dict[str, Any]) -> None:
        config["linux"]["cgroupsPath"] = path

    bad = rig.bundle("bad", "true", change=change)
    error = await refused(task.Create(rig.create_request(bad)))
    assert "OCI runtime create failed" in str(error.message)


async def test_a_bundle_that_is_not_there(rig: Rig, task: TaskStub) -> None:
    error = await refused(task.Create(rig.create_request(rig.root / "bad")))
    assert error.status is Status.NOT_FOUND


@pytest.mark.parametrize("id_", ["", "../bad", "bad/bad", "b" * 77, "bad\n"])
async def test_an_id_that_is_no_id(rig: Rig, task: TaskStub, id_: str) -> None:
    bad = rig.bundle("bad", "true")
    error = await refused(task.Create(rig.create_request(bad, id=id_)))
    assert error.status is Status.INVALID_ARGUMENT


async def test_an_unknown_runtime_binary_is_named(rig: Rig, task: TaskStub) -> None:
    bad = rig.bundle("bad", "true")
    options = rig.options(binary_name="/nonexistent/runc")
    error = await refused(task.Create(rig.create_request(bad, options=options)))
    # Not "not found", which managers relate to the container.
    assert error.status is Status.FAILED_PRECONDITION
    assert "/nonexistent/runc" in str(error.message)


async def test_a_runtime_that_is_no_program(rig: Rig, task: TaskStub) -> None:
    bad = rig.bundle("bad", "true")
    path = rig.root / "not-a-program"
    path.write_text("gibberish")
    path.chmod(0o755)
    error = await refused(
        task.Create(rig.create_request(bad, options=rig.options(binary_name=str(path))))
    )
    assert "not-a-program" in str(error.message)


async def test_options_of_an_unknown_type_are_ignored(rig: Rig, task: TaskStub) -> None:
    bundle = rig.bundle("odd", "true")
    options = AnyMessage(type_url="example.com/some.other.Options", value=b"\xff\xff\xff")
    # Without options the runtime's state is below the default root.
    try:
        await task.Create(rig.create_request(bundle, options=options), timeout=20)
        await task.Start(StartRequest(id="odd"), timeout=20)
        assert (await task.Wait(WaitRequest(id="odd"), timeout=20)).exit_status == 0
    finally:
        await task.Delete(DeleteRequest(id="odd"), timeout=20)


async def test_options_that_are_garbage(rig: Rig, task: TaskStub) -> None:
    bad = rig.bundle("bad", "true")
    options = AnyMessage(type_url="containerd.runc.v1.Options", value=b"\xff\xff\xff")
    error = await refused(task.Create(rig.create_request(bad, options=options)))
    assert error.status is Status.INVALID_ARGUMENT


async def test_a_container_id_that_is_taken(rig: Rig, task: TaskStub) -> None:
    error = await refused(task.Create(rig.create_request(rig.root / "good")))
    assert error.status is Status.ALREADY_EXISTS


async def test_a_container_of_the_runtime_that_is_not_ours(rig: Rig, task: TaskStub) -> None:
    """Another shim's container of that id must survive our refusal."""
    other = rig.bundle("other", "sleep", "1000")
    other_pid = rig.root / "other.pid"
    root = rig.runc_root / "trio-shim-test"
    command = ["runc", "--root", str(root), "run", "--detach", "--pid-file", str(other_pid)]
    with (rig.root / "null").open("w+") as null:
        await trio.run_process(
            [*command, "--bundle", str(other), "other"], stdin=null, stdout=null, stderr=null
        )
    error = await refused(task.Create(rig.create_request(other)))
    assert error.status is Status.ALREADY_EXISTS
    assert alive(int(other_pid.read_text()))


async def test_an_exec_id_used_twice(rig: Rig, task: TaskStub) -> None:
    await task.Exec(rig.exec_request("good", "e1", "true"), timeout=5)
    error = await refused(task.Exec(rig.exec_request("good", "e1", "true")))
    assert error.status is Status.ALREADY_EXISTS
    await task.Delete(DeleteRequest(id="good", exec_id="e1"), timeout=5)
    await task.Exec(rig.exec_request("good", "e1", "true"), timeout=5)
    await task.Delete(DeleteRequest(id="good", exec_id="e1"), timeout=5)


@pytest.mark.parametrize("exec_id", ["", "a/b", "..", "init"])
async def test_an_exec_id_that_is_none(rig: Rig, task: TaskStub, exec_id: str) -> None:
    error = await refused(task.Exec(rig.exec_request("good", exec_id, "true")))
    assert error.status is Status.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "spec",
    [
        AnyMessage(),
        AnyMessage(type_url=PROCESS_URL, value=b"{"),
        AnyMessage(type_url=PROCESS_URL, value=b"[]"),
        AnyMessage(type_url="something/Else", value=b"{}"),
    ],
)
async def test_an_exec_spec_that_is_none(task: TaskStub, spec: AnyMessage) -> None:
    error = await refused(task.Exec(ExecProcessRequest(id="good", exec_id="e1", spec=spec)))
    assert error.status is Status.INVALID_ARGUMENT


async def test_an_exec_of_a_program_that_is_not_there(rig: Rig, task: TaskStub) -> None:
    await task.Exec(rig.exec_request("good", "e1", "/no/such/program"), timeout=5)
    error = await refused(task.Start(StartRequest(id="good", exec_id="e1")))
    assert "no such file or directory" in str(error.message)
    assert "OCI runtime exec failed" in str(error.message)
    await task.Delete(DeleteRequest(id="good", exec_id="e1"), timeout=5)


async def test_deleting_a_running_container(task: TaskStub) -> None:
    error = await refused(task.Delete(DeleteRequest(id="good")))
    assert error.status is Status.FAILED_PRECONDITION


async def test_starting_twice(task: TaskStub) -> None:
    error = await refused(task.Start(StartRequest(id="good")))
    assert error.status is Status.FAILED_PRECONDITION


async def test_killing_a_finished_process_is_not_found(rig: Rig, task: TaskStub) -> None:
    bundle = rig.bundle("done", "true")
    await rig.run(task, bundle)
    await task.Wait(WaitRequest(id="done"), timeout=10)
    for number in (9, 0):
        error = await refused(task.Kill(KillRequest(id="done", signal=number)))
        assert error.status is Status.NOT_FOUND
    await task.Delete(DeleteRequest(id="done"), timeout=10)


async def test_killing_an_exec_that_was_never_started(rig: Rig, task: TaskStub) -> None:
    await task.Exec(rig.exec_request("good", "e1", "true"), timeout=5)
    error = await refused(task.Kill(KillRequest(id="good", exec_id="e1", signal=9)))
    assert error.status is Status.FAILED_PRECONDITION
    await task.Delete(DeleteRequest(id="good", exec_id="e1"), timeout=5)


async def test_a_signal_that_does_not_exist(task: TaskStub) -> None:
    error = await refused(task.Kill(KillRequest(id="good", signal=999)))
    assert error.status is Status.INVALID_ARGUMENT


async def test_unknown_containers_and_execs_are_not_found(task: TaskStub) -> None:
    for call in (
        task.State(StateRequest(id="nobody")),
        task.Wait(WaitRequest(id="nobody")),
        task.State(StateRequest(id="good", exec_id="nobody")),
        task.Delete(DeleteRequest(id="nobody")),
    ):
        error = await refused(call)
        assert error.status is Status.NOT_FOUND
        assert "does not exist" in str(error.message)


async def test_an_update_that_is_no_json(task: TaskStub) -> None:
    error = await refused(task.Update(UpdateTaskRequest(id="good")))
    assert error.status is Status.INVALID_ARGUMENT


async def test_fifos_nobody_opens_block_nothing(rig: Rig, task: TaskStub) -> None:
    bundle = rig.bundle("lonely", "echo", "hello")
    paths = {}
    for name in ("stdin", "stdout", "stderr"):
        paths[name] = str(rig.root / name)
        os.mkfifo(paths[name])
    with trio.fail_after(20):
        await rig.run(task, bundle, **paths)
        assert (await task.Wait(WaitRequest(id="lonely"))).exit_status == 0
        await task.Delete(DeleteRequest(id="lonely"))


async def test_a_fifo_that_is_not_there_is_named(rig: Rig, task: TaskStub) -> None:
    bad = rig.bundle("bad", "true")
    missing = str(rig.root / "no-fifo")
    error = await refused(task.Create(rig.create_request(bad, stdin=missing)))
    assert missing in str(error.message)


async def _talk(rig: Rig, data: bytes) -> trio.SocketStream:
    sock = trio.socket.socket(socket.AF_UNIX)
    await sock.connect(socket_path(rig.address))
    stream = trio.SocketStream(sock)
    await stream.send_all(data)
    return stream


async def test_a_truncated_frame_ends_its_own_connection(rig: Rig, task: TaskStub) -> None:
    async with await _talk(rig, struct.pack(">IIBB", 100, 1, 1, 0) + b"only this") as stream:
        await stream.send_eof()
        with trio.fail_after(10):
            assert await stream.receive_some() == b""


async def test_an_oversized_frame_is_answered_and_the_connection_goes_on(
    rig: Rig, task: TaskStub
) -> None:
    size = (4 << 20) + 1
    async with await _talk(rig, struct.pack(">IIBB", size, 1, 1, 0)) as stream:
        await stream.send_all(bytes(size))
        with trio.fail_after(10):
            head = await stream.receive_some(10)
            assert struct.unpack(">IIBB", head)[1:3] == (1, 2)


async def test_frames_for_unknown_streams_are_ignored(rig: Rig, task: TaskStub) -> None:
    # A data frame of a stream that was never opened, and an unknown kind.
    data = struct.pack(">IIBB", 1, 7, 3, 1) + b"x" + struct.pack(">IIBB", 1, 9, 77, 0) + b"x"
    async with await _talk(rig, data):
        pass


async def test_a_peer_of_another_user_is_turned_away(rig: Rig) -> None:
    # Without a mistake of an administrator they cannot reach the socket.
    rig.root.chmod(0o755)
    sockets = rig.root / "s"
    params = BootstrapParams(instance_id="c1", namespace=NAMESPACE, socket_dir=str(sockets))
    task = await rig.start(rig.bundle("c1", "true"), params.SerializeToString())
    path = socket_path(rig.address)
    sockets.chmod(0o755)
    Path(path).chmod(0o666)
    script = (
        "use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0);"
        "connect(S, sockaddr_un($ARGV[0])) or die $!; print sysread(S, $_, 10)"
    )
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    with trio.fail_after(20):
        done = await trio.run_process([*user, "perl", "-e", script, path], capture_stdout=True)
    assert done.stdout == b"0"  # the end of the stream, and not a byte before
    await task.Connect(ConnectRequest(), timeout=5)


async def test_start_without_config_json_says_so_and_leaves_nothing(rig: Rig) -> None:
    empty = rig.root / "empty"
    empty.mkdir()
    done = rig.run_shim(empty, "-id", "empty", "start")
    assert done.returncode == 1
    assert b"config.json" in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert done.stdout == b""
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize(
    "args", [("start",), ("-id", "a/b", "start"), ("-bogus", "start"), ("-id",), ("frobnicate",)]
)
async def test_a_wrong_command_line_is_refused_in_one_line(
    rig: Rig, args: tuple[str, ...]
) -> None:
    done = rig.run_shim(rig.root, *args)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1


async def test_shutdown_with_a_container_left_is_refused_by_doing_nothing(
    task: TaskStub,
) -> None:
    await task.Shutdown(ShutdownRequest(), timeout=5)
    await task.Shutdown(ShutdownRequest(now=True), timeout=5)


async def test_shutdown_of_an_empty_shim_ends_it(rig: Rig) -> None:
    task = await rig.start(rig.bundle("c1", "true"))
    await task.Shutdown(ShutdownRequest(), timeout=5)
    await wait_gone(rig.daemons, 5)
    assert not os.path.exists(socket_path(rig.address))  # noqa: PTH110
