"""Checkpoint and restore through the Task API: each option reaches runc, and no failure costs
the container.

The first half needs no criu: a stand-in for runc records its arguments.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api import process_pb2
from shim.api.options_pb2 import CheckpointOptions
from shim.api.task_pb2 import (
    CheckpointTaskRequest,
    DeleteRequest,
    KillRequest,
    PauseRequest,
    ResizePtyRequest,
    ResumeRequest,
    StartRequest,
    StateRequest,
    WaitRequest,
)
from tests.openfiles import open_files, wait_no_more_files
from tests.process.recorder import Recorder, record
from tests.process.rig import Rig, alive

if TYPE_CHECKING:
    from shim.api.task_grpc import TaskStub

pytestmark = pytest.mark.e2e
COUNT = "i=0; while true; do i=$((i+1)); echo $i > /count; sleep 0.05; done"


@cache
def _why_not() -> str:
    """Return why criu cannot work here, "" if it can."""
    if shutil.which("criu") is None:
        return "criu is not installed; tests/run.sh fetches one that works"
    if shutil.which("iptables-restore") is None:  # what `criu check` does not look for
        return "criu locks a container's network with iptables, which is not installed"
    check = subprocess.run(["criu", "check"], capture_output=True, timeout=60, check=False)
    return f"criu check: {check.stderr.decode()[-200:]}" if check.returncode else ""


@pytest.fixture
def working_criu() -> None:
    if reason := _why_not():
        pytest.skip(reason)


def request_of(path: Path | str, **fields: Any) -> CheckpointTaskRequest:
    options = AnyMessage(
        type_url="containerd.runc.v1.CheckpointOptions",
        value=CheckpointOptions(**fields).SerializeToString(),
    )
    return CheckpointTaskRequest(id="c1", path=str(path), options=options)


async def status(task: TaskStub, id_: str = "c1") -> int:
    return (await task.State(StateRequest(id=id_), timeout=5)).status


# -- what runc is asked -----------------------------------------------------------


async def _pretended(rig: Rig, verb: str = "checkpoint") -> tuple[TaskStub, Recorder]:
    """Run a container with a runtime that only pretends to do ``verb``."""
    recorder = record(rig, f'case " $* " in *" {verb} "*) exit 0;; esac; exec runc "$@"')
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle, options=rig.options(binary_name=recorder.binary))
    return task, recorder


@pytest.mark.parametrize(
    ("fields", "flags"),
    [
        ({"open_tcp": True}, ["--tcp-established"]),
        ({"external_unix_sockets": True}, ["--ext-unix-sk"]),
        ({"terminal": True}, ["--shell-job"]),
        ({"file_locks": True}, ["--file-locks"]),
        ({"empty_namespaces": ["network"]}, ["--empty-ns", "network"]),
        ({"cgroups_mode": "soft"}, ["--manage-cgroups-mode", "soft"]),
        ({"parent_path": "../first"}, ["--parent-path", "../first"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_an_option_reaches_runc_as_it_is_and_nothing_else_does(
    rig: Rig, fields: dict[str, Any], flags: list[str]
) -> None:
    task, recorder = await _pretended(rig)
    await task.Checkpoint(request_of("/images", **fields), timeout=10)
    argv = recorder.call("checkpoint")
    work = str(rig.root / "c1/work/criu-work")
    assert argv[argv.index("checkpoint") :] == [
        *("checkpoint", "--image-path", "/images", "--work-path", work),
        *flags,
        *("--leave-running", "c1"),
    ]
    assert not Path(work).exists()


async def test_all_options_at_once_and_without_the_container_going_on(rig: Rig) -> None:
    task, recorder = await _pretended(rig)
    request = request_of(
        "",
        exit=True,
        open_tcp=True,
        external_unix_sockets=True,
        terminal=True,
        file_locks=True,
        empty_namespaces=["network", "user"],
        cgroups_mode="full",
        image_path="/other images",
        work_path="/other work",
    )
    await task.Checkpoint(request, timeout=10)
    argv = recorder.call("checkpoint")
    assert argv[argv.index("checkpoint") :] == [
        *("checkpoint", "--image-path", "/other images", "--work-path", "/other work"),
        *("--tcp-established", "--ext-unix-sk", "--shell-job", "--file-locks"),
        *("--empty-ns", "network", "--empty-ns", "user"),
        *("--manage-cgroups-mode", "full", "c1"),
    ]


async def test_the_path_of_the_request_comes_before_the_one_in_the_options(rig: Rig) -> None:
    task, recorder = await _pretended(rig)
    await task.Checkpoint(request_of("/theirs", image_path="/ours"), timeout=10)
    argv = recorder.call("checkpoint")
    assert argv[argv.index("--image-path") + 1] == "/theirs"
    await rig.sink.wait_for("checkpointed")
    assert rig.sink.events[-1].checkpoint == "/theirs"


async def test_a_restore_is_told_the_image_the_work_and_the_options_of_create(rig: Rig) -> None:
    recorder = record(rig, 'case " $* " in *" restore "*) exit 1;; esac; exec runc "$@"')
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    options = rig.options(
        binary_name=recorder.binary, no_pivot_root=True, criu_work_path="/some/work"
    )
    request = rig.create_request(
        bundle, options=options, checkpoint="/images", parent_checkpoint="../first"
    )
    await task.Create(request, timeout=10)
    assert not recorder.calls("create")
    with pytest.raises(GRPCError):
        await task.Start(StartRequest(id="c1"), timeout=10)
    argv = recorder.call("restore")
    assert argv[argv.index("restore") :] == [
        *("restore", "--detach", "--no-subreaper", "--bundle", str(bundle)),
        *("--pid-file", str(bundle / "init.pid"), "--image-path", "/images"),
        *("--work-path", "/some/work", "--parent-path", "../first", "--no-pivot", "c1"),
    ]


async def test_a_checkpoint_of_what_does_not_run_is_refused(rig: Rig) -> None:
    recorder = record(rig)
    bundle = rig.bundle("c1", "true")
    task = await rig.start(bundle)
    options = rig.options(binary_name=recorder.binary)
    await task.Create(rig.create_request(bundle, options=options), timeout=10)
    for _ in range(2):  # created, and stopped
        with pytest.raises(GRPCError) as caught:
            await task.Checkpoint(request_of("/images"), timeout=10)
        assert caught.value.status is Status.FAILED_PRECONDITION
        if await status(task) == process_pb2.CREATED:
            await task.Start(StartRequest(id="c1"), timeout=10)
            await task.Wait(WaitRequest(id="c1"), timeout=10)
    assert not recorder.calls("checkpoint")


@pytest.mark.parametrize(
    "options",
    [
        AnyMessage(),
        AnyMessage(type_url="containerd.runc.v1.CheckpointOptions", value=b"\x08\x01"),
        AnyMessage(type_url="x/containerd.runc.v1.CheckpointOptions", value=b"\xff"),
    ],
    ids=["none", "no path in them", "no options"],
)
async def test_a_checkpoint_without_a_path_or_with_garbage_is_invalid(
    rig: Rig, options: AnyMessage
) -> None:
    task, recorder = await _pretended(rig)
    with pytest.raises(GRPCError) as caught:
        await task.Checkpoint(CheckpointTaskRequest(id="c1", options=options), timeout=10)
    assert caught.value.status is Status.INVALID_ARGUMENT
    assert not recorder.calls("checkpoint")


# -- with a real criu -------------------------------------------------------------


def _count(rig: Rig) -> int:
    try:
        return int((rig.rootfs() / "count").read_text() or "0")
    except FileNotFoundError:
        return 0


async def _counts_on(rig: Rig, beyond: int) -> None:
    with trio.fail_after(20):
        while _count(rig) <= beyond:
            await trio.sleep(0.01)


async def _counting(rig: Rig, **fields: Any) -> tuple[TaskStub, int]:
    bundle = rig.bundle("c1", "sh", "-c", COUNT)
    task = await rig.start(bundle)
    pid = (await rig.run(task, bundle, **fields)).pid
    await _counts_on(rig, 5)
    return task, pid


@pytest.mark.usefixtures("working_criu")
async def test_a_checkpoint_that_fails_leaves_the_container_running_and_says_where_to_look(
    rig: Rig,
) -> None:
    task, pid = await _counting(rig)
    images = rig.root / "images"
    images.write_text("a file where the images are to go")
    with pytest.raises(GRPCError) as caught:
        await task.Checkpoint(request_of(images, exit=True), timeout=60)
    assert caught.value.status is Status.UNKNOWN
    assert "OCI runtime checkpoint failed" in (caught.value.message or "")
    assert (await status(task), alive(pid)) == (process_pb2.RUNNING, True)
    await _counts_on(rig, _count(rig))
    await task.Exec(rig.exec_request("c1", "e1", "true"), timeout=5)
    await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=10)
    assert (await task.Wait(WaitRequest(id="c1", exec_id="e1"), timeout=10)).exit_status == 0
    assert "checkpointed" not in rig.sink.names()


@pytest.mark.usefixtures("working_criu")
async def test_a_dump_that_criu_gives_up_thaws_the_container_and_its_log_is_kept(
    rig: Rig,
) -> None:
    # An open file that is removed and too large for criu to keep among its images.
    big = "exec 9>/big; head -c 3000000 /dev/zero >&9; rm /big"
    bundle = rig.bundle("c1", "sh", "-c", f"{big}; {COUNT}")
    task = await rig.start(bundle)
    pid = (await rig.run(task, bundle)).pid
    await _counts_on(rig, 5)
    images = rig.root / "images"
    with pytest.raises(GRPCError) as caught:
        await task.Checkpoint(request_of(images), timeout=60)
    kept = bundle / "criu-dump.log"
    assert str(kept) in (caught.value.message or "")
    assert "ghost" in kept.read_text()
    assert not (bundle / "work/criu-work").exists()
    assert (await status(task), alive(pid)) == (process_pb2.RUNNING, True)
    await _counts_on(rig, _count(rig))
    assert "checkpointed" not in rig.sink.names()


@pytest.mark.usefixtures("working_criu")
async def test_a_container_moves_from_one_shim_to_another(rig: Rig) -> None:
    task, pid = await _counting(rig)
    images, work = rig.root / "images", rig.root / "their work"
    await task.Checkpoint(request_of(images, exit=True, work_path=str(work)), timeout=60)
    assert (await task.Wait(WaitRequest(id="c1"), timeout=10)).exit_status == 137
    await task.Delete(DeleteRequest(id="c1"), timeout=10)
    assert (work / "dump.log").exists()  # theirs is left to them
    await rig.sink.wait_for("delete", "c1")
    names = rig.sink.names("c1")
    # It ended while it was being dumped: the exit waits for its reader, the dump for criu.
    assert sorted(names[-3:-1]) == ["checkpointed", "exit c1"]
    assert names[-1] == "delete"
    before = _count(rig)

    again = rig.bundle("c2", "sh", "-c", COUNT)
    task = await rig.start(again)
    created = await task.Create(rig.create_request(again, checkpoint=str(images)), timeout=10)
    assert (created.pid, await status(task, "c2")) == (0, process_pb2.CREATED)
    assert _count(rig) == before
    started = await task.Start(StartRequest(id="c2"), timeout=60)
    assert started.pid not in (0, pid)
    assert await status(task, "c2") == process_pb2.RUNNING
    await _counts_on(rig, before)
    assert _count(rig) < before + 200
    await task.Exec(rig.exec_request("c2", "e1", "true"), timeout=5)
    await task.Start(StartRequest(id="c2", exec_id="e1"), timeout=10)
    assert (await task.Wait(WaitRequest(id="c2", exec_id="e1"), timeout=10)).exit_status == 0
    await task.Kill(KillRequest(id="c2", signal=9), timeout=5)
    assert (await task.Wait(WaitRequest(id="c2"), timeout=10)).exit_status == 137
    deleted = await task.Delete(DeleteRequest(id="c2"), timeout=10)
    assert deleted.pid == started.pid
    await rig.sink.wait_for("delete", "c2")
    assert rig.sink.names("c2") == [
        *("create", "start", "exec-added", "exec-started", "exit e1", "exit c2", "delete")
    ]


@pytest.mark.usefixtures("working_criu")
async def test_a_restore_that_fails_leaves_a_created_container_to_delete(rig: Rig) -> None:
    images = rig.root / "images"
    images.mkdir()
    (images / "inventory.img").write_bytes(b"no image")
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await task.Create(rig.create_request(bundle, checkpoint=str(images)), timeout=10)
    await rig.sink.wait_for("create")  # with that the daemon has its manager's connection
    before = open_files(rig.daemons[0])
    for _ in range(2):
        with pytest.raises(GRPCError) as caught:
            await task.Start(StartRequest(id="c1"), timeout=60)
        assert "OCI runtime restore failed" in (caught.value.message or "")
        assert await status(task) == process_pb2.CREATED
    await wait_no_more_files(rig.daemons[0], before)
    assert not list(rig.runc_root.glob("*/c1"))
    await task.Delete(DeleteRequest(id="c1"), timeout=10)
    await rig.sink.wait_for("delete")
    assert rig.sink.names() == ["create", "delete"]
    # The id is free again.
    await rig.run(task, bundle)
    assert await status(task) == process_pb2.RUNNING


@pytest.mark.usefixtures("working_criu")
async def test_a_paused_container_is_paused_after_its_checkpoint(rig: Rig) -> None:
    task, _ = await _counting(rig)
    await task.Pause(PauseRequest(id="c1"), timeout=10)
    await task.Checkpoint(request_of(rig.root / "images"), timeout=60)
    assert await status(task) == process_pb2.PAUSED
    [state] = rig.runc_root.glob("*/c1")
    said = subprocess.run(
        ["runc", "--root", str(state.parent), "state", "c1"], capture_output=True, check=True
    )
    assert b'"status": "paused"' in said.stdout
    before = _count(rig)
    await task.Resume(ResumeRequest(id="c1"), timeout=10)
    await _counts_on(rig, before)


@pytest.mark.usefixtures("working_criu")
async def test_a_terminal_is_restored_and_works(rig: Rig) -> None:
    def terminal(config: dict[str, Any]) -> None:
        config["process"]["terminal"] = True

    for name in ("in1", "out1", "in2", "out2"):
        os.mkfifo(rig.root / name)
    ends = {n: os.open(rig.root / n, os.O_RDWR | os.O_NONBLOCK) for n in ("out1", "in2", "out2")}

    def streams(number: int) -> dict[str, Any]:
        stdin, stdout = (str(rig.root / f"{name}{number}") for name in ("in", "out"))
        return {"stdin": stdin, "stdout": stdout, "terminal": True}

    async def says(name: str, wanted: bytes) -> None:
        said = b""
        with trio.fail_after(20):
            while wanted not in said:
                await trio.lowlevel.wait_readable(ends[name])
                said += os.read(ends[name], 4096)

    script = "echo hello; while read x; do echo you said $x; stty size; done"
    bundle = rig.bundle("c1", "sh", "-c", script, change=terminal)
    task = await rig.start(bundle)
    await rig.run(task, bundle, **streams(1))
    await says("out1", b"hello")
    images = rig.root / "images"
    await task.Checkpoint(request_of(images, exit=True, terminal=True), timeout=60)
    await task.Wait(WaitRequest(id="c1"), timeout=10)
    await task.Delete(DeleteRequest(id="c1"), timeout=20)

    again = rig.bundle("c2", "sh", "-c", script, change=terminal)
    task = await rig.start(again)
    await task.Create(rig.create_request(again, checkpoint=str(images), **streams(2)), timeout=10)
    await task.Start(StartRequest(id="c2"), timeout=60)
    await task.ResizePty(ResizePtyRequest(id="c2", width=77, height=33), timeout=5)
    os.write(ends["in2"], b"something\n")
    await says("out2", b"you said something\r\n33 77")
    for end in ends.values():
        os.close(end)
